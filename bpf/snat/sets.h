/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The sets that translations are in. struct nat_flow says how entries are published. */
#ifndef TOWPATH_SNAT_SETS_H
#define TOWPATH_SNAT_SETS_H

#include "lb/array_map.h"
#include "snat/heads.h"

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

#endif
