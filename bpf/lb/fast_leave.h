/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How packets leave the fast way, which snat/fast.h is about. */
#ifndef TOWPATH_LB_FAST_LEAVE_H
#define TOWPATH_LB_FAST_LEAVE_H

#include "lb/transmit.h"

/*
 * What is to be done with a packet: enum xdp_action, or where the general way is to begin. Behind the
 * parser it has no need to look for the service of the packet's very address and port again: that is
 * told with FAST_FLOW, from which fast_flow() is taken.
 */
enum fast {
	FAST_UNPARSED = -1, /* at the beginning */
	FAST_DOUBT = -1,    /* one of these, which is to be told */
	FAST_FLOW = -2,	    /* behind the parser */
	FAST_BEGINS = -2,   /* there, of a packet that begins a flow, which is to be translated */
};

enum fast_flow {
	FLOW_PARSED = 0,   /* the context has all */
	FLOW_PLAIN_V4 = 1, /* parse_plain() has looked at the frame; times 4: the service */
	FLOW_PLAIN_V6 = 2,
	FLOW_BEGINS_V4 = FLOW_PLAIN_V4 | FLOW_PLAIN_V6, /* see FAST_BEGINS */
	FLOW_SERVICE = 4,
};

/* With one of these the general way gives new flows a backend. */
static const __u32 FAST_NEVER_NEW =
	SERVICE_HASH_CLIENT | SERVICE_HASH_PORT | ~0U << SERVICE_ROUTES_SHIFT;

/* Where the packet is. Asked for no sooner than it is needed, or it would be kept on the stack. */
static __always_inline void fast_place(struct xdp_md *ctx, struct lb_ctx *lb)
{
	lb->cpu = bpf_get_smp_processor_id();
	lb->rx_ifindex = ctx->ingress_ifindex;
}

/*
 * Whether a next hop holds for a packet, which has no tag, and packets leave by it in one of the ways
 * that are looked at here, as they are and without a tag.
 */
static __always_inline bool fast_leaves(struct xdp_md *ctx, const struct lb_ctx *lb,
					const struct next_hop *hop, __u32 rx_ifindex)
{
	if (!hop_holds_untagged(hop, lb->jiffies, rx_ifindex))
		return false;
	if (likely(hop->way == WAY_TX))
		return true;
	return hop->way == WAY_REDIRECT ||
	       (hop->way == (WAY_REDIRECT | WAY_LINEAR) && !frame_in_fragments(ctx));
}

/* For a packet that is in its frame: counts it, and returns what is to be done with it. */
static __always_inline int fast_sent(const struct lb_ctx *lb, const struct next_hop *hop)
{
	if (likely(hop->way == WAY_TX)) {
		count_verdict(lb->cpu, VERDICT_TX);
		return XDP_TX;
	}
	bpf_redirect(hop->tx_ifindex, 0);
	count_verdict(lb->cpu, VERDICT_REDIRECT);
	return XDP_REDIRECT;
}

#endif
