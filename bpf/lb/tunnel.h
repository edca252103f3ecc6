/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the load balancer's tunnels have for a source. */
#ifndef TOWPATH_LB_TUNNEL_H
#define TOWPATH_LB_TUNNEL_H

#include "lb/maps.h"
#include "net/encap.h"

/*
 * The next hop's, and the host bits of a prefix from the flow's hash, for the backend's RSS: the
 * last from the low ones, since the high ones chose the slot and with it the backend.
 */
static __always_inline void tunnel_source(struct outer *outer)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	outer->saddr = outer->hop->saddr;
	if (set)
		outer->saddr.word[3] |= bpf_htonl(outer->hash) &
					(*outer->family == FAMILY_V4 ? set->vary4 : set->vary6);
}

#endif
