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

/* Never 0, which is an empty word's. */
static __always_inline __u64 bw_flow_tag(__u32 hash)
{
	return (hash / BW_SETS & ((1 << (64 - BANDWIDTH_TAG_SHIFT)) - 1)) ?: 1;
}

/* Where a flow's word is unless another's is there. */
static __always_inline __u32 bw_flow_slot(__u32 hash)
{
	__u32 slot = hash % BW_SETS * BANDWIDTH_WAYS + (hash >> 29);

	barrier_var(slot); /* the compiler knows how large it is, and the verifier doesn't */
	return slot % BANDWIDTH_FLOWS;
}

/*
 * The word of a flow that isn't at its place: it is elsewhere in the set, or new and takes one
 * whose time has passed, or shares one. Global, for the verifier, as all here that loops.
 */
__noinline int bw_find_flow(__u32 aggregate, __u32 hash, __u64 now)
{
	struct bandwidth_state *state = bw_state(aggregate);
	__u32 found = bw_flow_slot(hash), first = found / BANDWIDTH_WAYS * BANDWIDTH_WAYS;
	__u64 tag = bw_flow_tag(hash);
	bool is_free;
	int i;

	if (!state)
		return 0;
	is_free = bw_flow_time(bw_read(state->flow[found % BANDWIDTH_FLOWS])) <= now;
	for (i = 0; i < BANDWIDTH_WAYS; i++) {
		__u64 word = bw_read(state->flow[(first | i) % BANDWIDTH_FLOWS]);

		if (word >> BANDWIDTH_TAG_SHIFT == tag)
			return first | i;
		if (!is_free && bw_flow_time(word) <= now) {
			is_free = true;
			found = first | i;
		}
	}
	return found;
}

/* How many flows of a set are ahead of the present. */
__noinline int bw_count_set(__u32 aggregate, __u32 set, __u64 now)
{
	struct bandwidth_state *state = bw_state(aggregate);
	__u32 first = set * BANDWIDTH_WAYS;
	int i, found = 0;

	if (!state)
		return 0;
	for (i = 0; i < BANDWIDTH_WAYS; i++)
		found += bw_flow_time(bw_read(state->flow[(first | i) % BANDWIDTH_FLOWS])) > now;
	return found;
}

/* The same of several sets, one bit each: as `active` has it, with those sets that have some. */
__noinline int bw_count_sets(__u32 aggregate, __u32 sets, __u64 now)
{
	__u32 set, found = 0;

	for (set = 0; set < BW_SETS; set++) {
		__u32 here = sets >> set & 1 ? bw_count_set(aggregate, set, now) : 0;

		if (here)
			found += here | 1U << (set + BANDWIDTH_SETS_SHIFT);
	}
	return found;
}

/*
 * How many flows of an aggregate are ahead of the present, as it was a millisecond ago at most; 0
 * where nothing waits: a flow has as much as it likes then. Notes that this set has one from now
 * on. Sets in which no flow was ahead are not looked at, so that an aggregate of few flows is as
 * cheap with the first packet in a while as with others.
 */
static __always_inline __u32 bw_active(struct bandwidth_state *state, __u32 aggregate, __u32 slot,
				       __u64 now)
{
	__u32 set = slot / BANDWIDTH_WAYS, mine = 1U << (set + BANDWIDTH_SETS_SHIFT);
	__u64 active = bw_read(state->active) | mine;
	bool waits = bw_read(state->next) > now;
	__u32 tick = now >> BANDWIDTH_COUNT_SHIFT;

	if (waits && active >> 32 != tick) {
		__u32 others = (active ^ mine) >> BANDWIDTH_SETS_SHIFT & ((1 << BW_SETS) - 1);
		__u32 found = bw_count_set(aggregate, set, now) | mine;

		if (others)
			found += bw_count_sets(aggregate, others, now);
		active = (__u64)tick << 32 | found;
	}
	/* That line is written anyway; the verifier would have a way more for all that follows. */
	bw_read(state->active) = active;
	return waits ? active & ((1 << BANDWIDTH_SETS_SHIFT) - 1) : 0;
}

#endif
