/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: which backend a flow was given, so that it keeps it while
 * tables change. It is a cache. What it forgets, Maglev answers.
 *
 * Sets of FLOW_WAYS entries, shared by all CPUs since a flow's packets may move
 * between them, and without a lock: see struct flow for why a race costs an entry
 * and never a wrong backend.
 */
#ifndef TOWPATH_FLOW_H
#define TOWPATH_FLOW_H

#include "hash.h"
#include "maps.h"
#include "parse.h"

struct flow_place {
	struct flow_set *set;
	__u32 tag;
	__u32 now;			/* in units of `seen` */
};

static __always_inline bool flow_key_equal(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	/* The last words differ most; IPv4 addresses are in words 1 and 3. */
	return x[4] == y[4] && x[1] == y[1] && x[3] == y[3] && x[0] == y[0] && x[2] == y[2];
}

static __always_inline struct flow_place flow_place(__u64 hash, __u64 jiffies)
{
	__u64 keyed = hash_step(hash, flow_seed);
	__u32 at = keyed & flow_mask;

	return (struct flow_place){
		.set = bpf_map_lookup_elem(&flows, &at),
		.tag = keyed >> 32,
		.now = jiffies >> FLOW_SEEN_SHIFT,
	};
}

/* Returns the handle that the flow was given, 0 if it isn't known. */
static __always_inline __u32 flow_lookup(const struct flow_place *place, const struct flow_key *key,
					 bool touch)
{
	if (!place->set)
		return 0;
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		struct flow *flow = &place->set->way[i];
		__u64 ref = *(volatile __u64 *)&flow->ref;

		if ((__u32)ref != place->tag || !flow_key_equal(&flow->key, key))
			continue;
		if (touch && flow->seen != place->now)
			flow->seen = place->now;
		return ref >> 32;
	}
	return 0;
}

/* Takes the flow's own entry, else a free one, else the one longest unseen. */
static __always_inline void flow_insert(const struct flow_place *place, const struct flow_key *key,
					__u32 handle)
{
	struct flow *victim;
	__u32 oldest = 0;
	int chosen = 0;

	if (!place->set)
		return;
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		struct flow *flow = &place->set->way[i];
		__u32 age = flow->ref ? place->now - flow->seen + 1 : -1U;

		if ((__u32)flow->ref == place->tag && flow_key_equal(&flow->key, key)) {
			chosen = i;
			break;
		}
		if (age > oldest) {
			oldest = age;
			chosen = i;
		}
	}

	victim = &place->set->way[chosen & (FLOW_WAYS - 1)];
	*(volatile __u64 *)&victim->ref = 0;
	victim->key = *key;
	victim->seen = place->now;
	barrier();
	*(volatile __u64 *)&victim->ref = (__u64)handle << 32 | place->tag;
}

#endif
