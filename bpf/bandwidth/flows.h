/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The times of flows within an aggregate. What two CPUs spoil here is fairness, never the rate. */
#ifndef TOWPATH_BANDWIDTH_FLOWS_H
#define TOWPATH_BANDWIDTH_FLOWS_H

#include "bandwidth/clock.h"

enum {
	BW_SETS = BANDWIDTH_FLOWS / BANDWIDTH_WAYS,
};

static const __u64 BW_TIME_MASK = (1ULL << BANDWIDTH_TAG_SHIFT) - 1;

/* A word's time, in ns. */
static __always_inline __u64 bw_flow_time(__u64 word)
{
	return (word & BW_TIME_MASK) << BANDWIDTH_TIME_SHIFT;
}

static __always_inline __u64 bw_flow_word(__u64 tag, __u64 time)
{
	return tag << BANDWIDTH_TAG_SHIFT |
	       (time + (1 << BANDWIDTH_TIME_SHIFT) - 1) >> BANDWIDTH_TIME_SHIFT;
}

static __always_inline __u64 bw_flow_tag(__u32 hash)
{
	return hash / BW_SETS % ((1 << (64 - BANDWIDTH_TAG_SHIFT)) - 1) + 1;
}

/*
 * The word of a flow: its own, or one whose time has passed, or one that it shares. Global, for the
 * verifier, as all here that loops.
 */
__noinline int bw_find_flow(__u32 aggregate, __u32 hash, __u64 now)
{
	struct bandwidth_state *state = bw_state(aggregate);
	__u32 set = hash % BW_SETS * BANDWIDTH_WAYS;
	__u64 tag = bw_flow_tag(hash);
	__u32 found = set | hash >> 29;
	bool is_free = false;
	int i;

	if (!state)
		return 0;
	for (i = 0; i < BANDWIDTH_WAYS; i++) {
		__u64 word = bw_read(state->flow[(set | i) % BANDWIDTH_FLOWS]);

		if (word >> BANDWIDTH_TAG_SHIFT == tag)
			return set | i;
		if (!is_free && bw_flow_time(word) <= now) {
			is_free = true;
			found = set | i;
		}
	}
	return found;
}

/* How many flows of an aggregate are ahead of the present. */
__noinline int bw_count_flows(__u32 aggregate, __u64 now)
{
	struct bandwidth_state *state = bw_state(aggregate);
	int i, found = 0;

	if (!state)
		return 0;
	for (i = 0; i < BANDWIDTH_FLOWS; i++)
		found += bw_flow_time(bw_read(state->flow[i])) > now;
	return found;
}

/* The same, as it was a millisecond ago at most. */
static __always_inline __u32 bw_active(struct bandwidth_state *state, __u32 aggregate, __u64 now)
{
	__u32 tick = now >> BANDWIDTH_COUNT_SHIFT;
	__u64 active = bw_read(state->active);

	if (unlikely(active >> 32 != tick)) {
		active = (__u64)tick << 32 | bw_count_flows(aggregate, now);
		bw_read(state->active) = active;
	}
	return active;
}

#endif
