/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The sets that translations are in. struct nat_flow says how entries are published. */
#ifndef TOWPATH_SNAT_SETS_H
#define TOWPATH_SNAT_SETS_H

#include <stdbool.h>

#include "abi/snat.h"
#include "lb/array_map.h"

struct nat_set {
	struct nat_flow way[NAT_WAYS];
};

struct nat_lock {
	struct bpf_spin_lock lock;
};

ARRAY_MAP(nat_heads, struct nat_head);
ARRAY_MAP(nat_flows, struct nat_set);

/* Apart from the sets: the kernel maps no array with locks in it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nat_lock);
} nat_locks SEC(".maps");

/*
 * Whether an entry has its half in the head. It always has, unless somebody has stored one
 * without the other: neither side would find it, and it must not keep its flow from another.
 */
static __always_inline bool nat_is_whole(const struct nat_head *head, __u32 way)
{
	return ((const volatile __u8 *)&head->forward)[way] &&
	       ((const volatile __u8 *)&head->reply)[way];
}

/* The same of all ways: of those that are whole it marks the high bit of their byte. */
static __always_inline __u64 nat_whole_ways(const struct nat_head *head)
{
	const __u64 low = 0x7f7f7f7f7f7f7f7fULL;
	__u64 forward = head->forward, reply = head->reply;

	return (((forward & low) + low) | forward) & (((reply & low) + low) | reply) & ~low;
}

/* The version after an entry's: of no entry that this way has had lately, and never 0. */
static __always_inline __u32 nat_next_version(const struct nat_flow *e)
{
	return e->version + 1 ?: 1;
}

/* Gives up an entry. Under its set's lock. */
static __always_inline void nat_clear(struct nat_head *head, struct nat_flow *e, __u32 way)
{
	*(volatile __u64 *)&e->ref = 0;
	((volatile __u8 *)&head->forward)[way] = 0;
	((volatile __u8 *)&head->reply)[way] = 0;
}

/* Has flows whose first set this is look at so many candidates more. Under its lock. */
static __always_inline void nat_reach(struct nat_head *head, __u32 tries)
{
	if (head->reach < tries)
		head->reach = tries;
}

#endif
