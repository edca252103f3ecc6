/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The heads of sets of translations. struct nat_head has their layout. */
#ifndef TOWPATH_SNAT_HEADS_H
#define TOWPATH_SNAT_HEADS_H

#include <stdbool.h>

#include "abi/snat.h"

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
static __always_inline __u64 nat_whole_ways(__u64 forward, __u64 reply)
{
	const __u64 low = 0x7f7f7f7f7f7f7f7fULL;

	return (((forward & low) + low) | forward) & (((reply & low) + low) | reply) & ~low;
}

/* Has flows whose first set this is look at so many candidates more. Under its lock. */
static __always_inline void nat_reach(struct nat_head *head, __u32 tries)
{
	if (head->reach < tries)
		head->reach = tries;
}

#endif
