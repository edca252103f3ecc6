/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What was decided about a packet, and its way to whoever asked. */
#ifndef TOWPATH_LB_TRACE_H
#define TOWPATH_LB_TRACE_H

#include "lb/maps.h"
#include "net/parse.h"

/* Stands where the MAC addresses would be in a frame that asks for a trace. */
struct trace_request {
	__u64 cookie;
	__u32 ifindex;
};

/*
 * Whether the frame asks for a trace, and if so where it is to have come in. Whatever
 * would change state asks whether this packet is being traced.
 */
static __always_inline bool trace_requested(struct xdp_md *ctx, __u32 *ifindex)
{
	struct trace_request *request = (void *)(long)ctx->data;

	if ((void *)(&request->ifindex + 1) > (void *)(long)ctx->data_end)
		return false;
	if (likely(request->cookie != trace_cookie || !trace_cookie))
		return false;
	*ifindex = request->ifindex;
	return true;
}

#endif
