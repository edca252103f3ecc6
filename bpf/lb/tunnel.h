/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the load balancer's tunnels have for a source. */
#ifndef TOWPATH_LB_TUNNEL_H
#define TOWPATH_LB_TUNNEL_H

#include "lb/maps.h"
#include "net/encap.h"

/* How many low bits of an address the flow's hash fills: a mask of them has no others. */
static __always_inline __u8 tunnel_varies(__u8 family)
{
	__u32 zero = 0;
	const struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	if (!set)
		return 0;
	return __builtin_popcount(family == FAMILY_V4 ? set->vary4 : set->vary6);
}

/*
 * The next hop's, and the host bits of a prefix from the flow's hash, for the backend's RSS: the
 * last from the low ones, since the high ones chose the slot and with it the backend.
 */
static __always_inline void tunnel_source(struct outer *outer)
{
	const struct next_hop *hop = outer->hop;

	outer->saddr = hop->saddr;
	if (hop->vary)
		outer->saddr.word[3] |= bpf_htonl(outer->hash & ((1ULL << hop->vary) - 1));
}

#endif
