/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sources a service is for. */
#ifndef TOWPATH_LB_ALLOW_FROM_H
#define TOWPATH_LB_ALLOW_FROM_H

#include "lb/maps.h"
#include "lb/context.h"

/*
 * Whether a prefix of a set has the address. The caller has read the set's number once: it may be
 * replaced at any time, and the set that it names is whole until all packets that have read it are
 * through. Global, so that the verifier looks at it once, and told numbers only.
 */
__noinline int source_in_set(__u32 set, __u32 family, __u64 saddr_first, __u64 saddr_last)
{
	struct source_key key = {
		.prefixlen = SOURCE_BITS + 128,
		.set = set,
		.family = family,
	};
	__u32 *word = (__u32 *)key.addr.word;

	word[0] = saddr_first;
	word[1] = saddr_first >> 32;
	word[2] = saddr_last;
	word[3] = saddr_last >> 32;
	return bpf_map_lookup_elem(&sources, &key) ? 1 : 0;
}

/* The same of the packet's source. */
static __always_inline bool source_allowed(const struct flow_key *flow, __u32 set)
{
	const wide64 *saddr = (const wide64 *)&flow->saddr;

	return source_in_set(set, flow->family, saddr[0], saddr[1]);
}

#endif
