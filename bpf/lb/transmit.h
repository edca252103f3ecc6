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

static __always_inline __u32 next_hop_verdict(const struct lb_ctx *lb, const struct next_hop *hop)
{
	return hop->tx_ifindex == lb->rx_ifindex ? VERDICT_TX : VERDICT_REDIRECT;
}

/* Whether a packet may go there, so many bytes longer than it came. */
static __always_inline bool next_hop_fits(const struct lb_ctx *lb, const struct next_hop *hop,
					  __u32 longer)
{
	return likely(!hop->mtu || lb->pkt.l3_length + longer <= hop->mtu);
}

/* ---- Transmission ---- */

static __always_inline bool is_sent(__u32 verdict)
{
	return verdict <= VERDICT_HANDOFF;
}

/*
 * Sends a packet that is in its frame, as the verdict says. `neighbour`: whom the kernel is to
 * resolve if that has to be, NULL for who the packet is addressed to. Returns the verdict.
 */
static __always_inline __u32 transmit(struct xdp_md *ctx, struct lb_ctx *lb, __u32 verdict,
				      __u32 tx_ifindex, const struct backend *neighbour)
{
	RECORD(lb, tx_ifindex, tx_ifindex);
	if (unlikely(verdict == VERDICT_HANDOFF) && punt(ctx, tx_ifindex, neighbour))
		return VERDICT_DROP_HEADROOM;
	if (unlikely(verdict == VERDICT_REDIRECT))
		bpf_redirect(tx_ifindex, 0);
	return verdict;
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
