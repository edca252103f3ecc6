/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sources a service is for. */
#ifndef TOWPATH_LB_ALLOW_FROM_H
#define TOWPATH_LB_ALLOW_FROM_H

#include "lb/maps.h"
#include "lb/context.h"

/*
 * Whether a prefix of a set has the packet's source. The caller has read the set's
 * number once: it may be replaced at any time, and the set that it names is whole until
 * all packets that have read it are through. Global, so that the verifier looks at it once.
 */
__noinline int source_allowed(__u32 slot, __u32 set)
{
	struct source_key key = { .prefixlen = SOURCE_BITS + 128, .set = set };
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb)
		return 0;
	key.family = lb->pkt.flow.family;
	key.addr = lb->pkt.flow.saddr;
	return bpf_map_lookup_elem(&sources, &key) ? 1 : 0;
}

#endif
