/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The note in front of a packet that the kernel is to send. */
#ifndef TOWPATH_LB_PUNT_H
#define TOWPATH_LB_PUNT_H

#include "lb/maps.h"

/*
 * Tells the tc program on this device which way the packet goes: to `next_hop` if it is
 * not NULL, or as it is if it is `complete`. Takes the place of a driver's metadata, since there may not be room for both.
 */
static __always_inline int punt(struct xdp_md *ctx, __u32 ifindex, const struct backend *next_hop,
				bool complete)
{
	struct punt *mark;
	int metadata = (void *)(long)ctx->data - (void *)(long)ctx->data_meta;

	if (bpf_xdp_adjust_meta(ctx, metadata - (int)sizeof(*mark)))
		return -1;
	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) > (void *)(long)ctx->data)
		return -1;
	*mark = (struct punt){ .cookie = trace_cookie, .ifindex = ifindex };
	if (complete) {
		mark->family = PUNT_FRAME;
	} else if (next_hop) {
		mark->family = next_hop->family;
		mark->next_hop = next_hop->addr;
	}
	return 0;
}

#endif
