/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet for a backend on the same link, in a new frame.
 *
 * Nothing but the frame is written: the backend finds the packet as the client sent it,
 * down to its TTL. That this node is no router for it follows from the frame's being
 * for a VIP, which is this node's own address as much as it is the backend's.
 */
#ifndef TOWPATH_LB_L2_H
#define TOWPATH_LB_L2_H

#include "net/encap.h"
#include "lb/maps.h"
#include "net/parse.h"

/* Returns 0, or -1 if the driver left no room for a tag; the packet is then as it was. */
static __always_inline int relink(struct xdp_md *ctx, const struct packet *pkt,
				  const struct next_hop *hop)
{
	bool v4 = pkt->flow.family == FAMILY_V4;
	__be16 vlan = hop->tx_vlan;
	__u32 link = link_length(vlan);
	struct cursor c;

	if (pkt->l3_offset != link && bpf_xdp_adjust_head(ctx, (int)pkt->l3_offset - (int)link))
		return -1;
	c = cursor_of(ctx);
	return write_link(&c, hop, vlan, v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6), 0) ? 0
											      : -1;
}

#endif
