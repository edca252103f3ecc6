/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The note in front of a packet that the kernel is to send, or to deliver. */
#ifndef TOWPATH_LB_PUNT_H
#define TOWPATH_LB_PUNT_H

#include "lb/maps.h"

/*
 * Puts a note there, NULL if there is no room. Takes the place of a driver's metadata, since there
 * may not be room for both.
 */
static __always_inline struct punt *punt_note(struct xdp_md *ctx, __u32 ifindex, __u32 family)
{
	struct punt *mark;
	int metadata = (void *)(long)ctx->data - (void *)(long)ctx->data_meta;

	if (bpf_xdp_adjust_meta(ctx, metadata - (int)sizeof(*mark)))
		return NULL;
	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) > (void *)(long)ctx->data)
		return NULL;
	*mark = (struct punt){ .cookie = trace_cookie, .ifindex = ifindex, .family = family };
	return mark;
}

/*
 * Tells the tc program on this device which way the packet goes: to `next_hop` if it is
 * not NULL, or as it is if it is `complete`.
 */
static __always_inline int punt(struct xdp_md *ctx, __u32 ifindex, const struct backend *next_hop,
				bool complete)
{
	struct punt *mark = punt_note(ctx, ifindex, complete ? PUNT_FRAME : 0);

	if (!mark)
		return -1;
	if (next_hop && !complete) {
		mark->family = next_hop->family;
		mark->next_hop = next_hop->addr;
	}
	return 0;
}

/* Tells the tc program on this device which backend on this node the packet is for. */
static __always_inline int punt_local(struct xdp_md *ctx, const struct backend *backend,
				      __be16 port, __u16 timeout)
{
	struct punt_local *mark = (void *)punt_note(ctx, 0, PUNT_LOCAL);

	_Static_assert(sizeof(*mark) == sizeof(struct punt), "both are read as either");
	if (!mark)
		return -1;
	mark->port = port;
	mark->timeout = timeout;
	mark->backend = backend->addr;
	return 0;
}

#endif
