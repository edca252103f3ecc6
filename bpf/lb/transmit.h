/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way out, which is the same for all packets whatever is done to them: a next hop, known from
 * earlier in this jiffy or asked for, whether the packet fits, and its transmission.
 */
#ifndef TOWPATH_LB_TRANSMIT_H
#define TOWPATH_LB_TRANSMIT_H

#include "lb/context.h"
#include "lb/punt.h"
#include "lb/route.h"
#include "lb/service.h"
#include "net/nexthop.h"

/* ---- The next hop ---- */

/* Whether the kernel need not be asked. `rx_ifindex`: with HOP_L2 if it is to be that very host. */
static __always_inline bool next_hop_holds(const struct lb_ctx *lb, const struct next_hop *kept,
					   __u32 rx_ifindex)
{
	return hop_holds(kept, lb->jiffies, rx_ifindex, lb->pkt.vlan);
}

/* For a question to the kernel: who asks puts the answer there too. */
static __always_inline void next_hop_begin(const struct lb_ctx *lb, struct next_hop *fresh,
					   __u32 rx_ifindex)
{
	hop_begin(fresh, lb->jiffies, rx_ifindex, lb->pkt.vlan);
}

/* For its answer: keeps a next hop that was found. False: there is none, for route_verdict(). */
static __always_inline bool next_hop_keep(const struct lb_ctx *lb, struct next_hop *kept,
					  const struct next_hop *fresh, int result)
{
	TRACE(lb, fib_result, result);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	if (!lb->traced)
		*kept = *fresh;
	return true;
}

/* Whether a packet may go there, so many bytes longer than it came. */
static __always_inline bool next_hop_fits(const struct lb_ctx *lb, const struct next_hop *hop,
					  __u32 longer)
{
	return likely(!hop->mtu || lb->pkt.l3_length + longer <= hop->mtu);
}

/* ---- Transmission ---- */

_Static_assert((int)VERDICT_MAX <= (int)WAY_OTHER, "no verdict has the number of a way");

/* Of a verdict, or of enum way_out: the verdicts that are none of these lie in between. */
static __always_inline bool is_sent(__u32 verdict)
{
	return likely(verdict <= VERDICT_HANDOFF) || verdict >= WAY_OTHER;
}

/*
 * Sends a frame that is complete, but for MAC addresses in the case of WAY_HANDOFF, by any way but
 * XDP_TX. `handle`: of the backend that the kernel is to resolve then, 0 for who the packet is
 * addressed to. Returns the verdict.
 */
__noinline int transmit_by(struct xdp_md *ctx, __u32 slot, __u32 way, __u32 tx_ifindex,
			   __u32 handle)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb)
		return VERDICT_DROP_HEADROOM;
	if (way & WAY_LINEAR)
		way = frame_in_fragments(ctx) ? WAY_KERNEL : way & ~WAY_LINEAR;
	if ((way & WAY_VERDICT) == WAY_HANDOFF) {
		if (punt(ctx, tx_ifindex, handle ? backend_of(handle) : NULL, way == WAY_KERNEL))
			return VERDICT_DROP_HEADROOM;
		lb->pkt_flags |= PKT_PASSED;
	} else {
		bpf_redirect(tx_ifindex, 0);
		lb->pkt_flags |= PKT_REDIRECTED;
	}
	return way & WAY_VERDICT;
}

/* The same, and by XDP_TX. */
static __always_inline __u32 transmit(struct xdp_md *ctx, struct lb_ctx *lb, __u32 way,
				      __u32 tx_ifindex, __u32 handle)
{
	RECORD(lb, tx_ifindex, tx_ifindex);
	if (likely(way == WAY_TX))
		return VERDICT_TX;
	return transmit_by(ctx, lb->slot, way, tx_ifindex, handle);
}

/*
 * Sends an answer that has taken the packet's place back where that came from. Returns
 * `verdict`, or the reason that it is dropped for.
 */
static __always_inline __u32 transmit_back(struct xdp_md *ctx, const struct lb_ctx *lb,
					   __u32 verdict)
{
	struct egress_device *device;
	__u32 ifindex, way;

	if (lb->traced)
		return verdict;
	ifindex = lb->rx_ifindex;
	device = bpf_map_lookup_elem(&egress_devices, &ifindex);
	if (device && device->flags & EGRESS_GENERIC)
		return verdict;
	way = fib_way(device ? device->flags : 0, true);
	if (way == WAY_TX)
		return verdict;
	return is_sent(transmit_by(ctx, lb->slot, way, ifindex, 0)) ? verdict
								    : VERDICT_DROP_HEADROOM;
}

/* What goes back where it came from, by the way that the device allows. */
static __always_inline int xdp_action_back(const struct lb_ctx *lb)
{
	if (likely(!(lb->pkt_flags & (PKT_REDIRECTED | PKT_PASSED))))
		return XDP_TX;
	return lb->pkt_flags & PKT_REDIRECTED ? XDP_REDIRECT : XDP_PASS;
}

static __always_inline int xdp_action(const struct lb_ctx *lb, __u32 verdict)
{
	if (verdict == VERDICT_TX)
		return xdp_action_back(lb);
	barrier_var(verdict); /* or clang makes one jump of all these, which is longer */
	if (verdict == VERDICT_REDIRECT)
		return XDP_REDIRECT;
	if (verdict <= VERDICT_PASS_TRACKED)
		return XDP_PASS;
	if (verdict == VERDICT_TX_TOO_BIG || verdict == VERDICT_TX_ECHO)
		return xdp_action_back(lb);
	return XDP_DROP;
}

/* Counts a packet that was sent to a backend. */
static __always_inline void count_sent(const struct lb_ctx *lb, struct backend_cpu *stats)
{
	if (!lb->traced) {
		stats->packets++;
		stats->bytes += lb->pkt.l3_length;
	}
}

#endif
