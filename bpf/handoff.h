/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The note in front of a packet that the kernel is to send. */
#ifndef TOWPATH_HANDOFF_H
#define TOWPATH_HANDOFF_H

#include "maps.h"

/* Tells the tc program on this device which way the packet goes. */
static __always_inline int mark_handoff(struct xdp_md *ctx, __u32 ifindex)
{
	struct handoff *mark;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*mark)))
		return -1;
	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) > (void *)(long)ctx->data)
		return -1;
	*mark = (struct handoff){ .cookie = trace_cookie, .ifindex = ifindex };
	return 0;
}

#endif
