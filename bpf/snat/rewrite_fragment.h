/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Translates a fragment. Only the first one of a packet has ports, and the transport's
 * checksum, which covers all of the packet and is followed like any other. One of TCP that ends
 * before the checksum leaves word where that is: it is then in the fragment that has the place.
 *
 * Its identification is another one: see net/identification.h.
 */
#ifndef TOWPATH_SNAT_REWRITE_FRAGMENT_H
#define TOWPATH_SNAT_REWRITE_FRAGMENT_H

#include "net/identification.h"
#include "lb/maps.h"
#include "snat/rewrite.h"
#include "lb/context.h"

/* The first fragment's ports, and the checksum if it has it. `difference`: of the addresses. */
static __always_inline int translate_first(struct cursor *c, const struct packet *pkt,
					   const struct nat_tuple *to, __u64 difference)
{
	bool tcp = pkt->flow.protocol == IPPROTO_TCP;

	if (!tcp || pkt->l4_offset + TCP_CHECKSUM_AT + sizeof(__u16) <= pkt->l3_length)
		return translate_ports(c, to, tcp, difference);
	if (c->pos + sizeof(struct ports) > c->end)
		return -1;
	replace_ports(c->pos, to);
	return 0;
}

/* In a later one, which begins at `c`, TCP's checksum, if it is there and was not in the first. */
static __always_inline int translate_later(struct cursor *c, const struct lb_ctx *lb,
					   const struct nat_tuple *to, __u64 difference)
{
	__u32 at = lb->checksum_at - lb->hdr.offset * 8;
	const struct packet *pkt = &lb->pkt;
	__u16 *check;

	if (!lb->checksum_at || at > TRANSLATE_L4 / 2 ||
	    pkt->l4_offset + at + sizeof(*check) > pkt->l3_length)
		return 0;
	/* Or the compiler leaves the mask out, and Linux 5.10 doesn't know how far that is. */
	barrier_var(at);
	check = c->pos + (at & TRANSLATE_L4);
	if ((void *)(check + 1) > c->end)
		return -1;
	difference +=
		difference16(pkt->flow.sport, to->sport) + difference16(pkt->flow.dport, to->dport);
	*check = checksum_after(*check, difference);
	return 0;
}

/* Returns 0, or -1 if the driver left no room; the packet is then as it was. */
static __always_inline int translate_fragment(struct xdp_md *ctx, const struct lb_ctx *lb,
					      const struct nat_tuple *to,
					      const struct next_hop *hop)
{
	const struct packet *pkt = &lb->pkt;
	const struct flow_key *flow = &pkt->flow;
	__u32 mask = identification_mask(&flow->saddr, &flow->daddr, flow->family, flow->protocol,
					 flow_seed);
	__u32 l4 = pkt->l4_offset & TRANSLATE_L4;
	struct cursor c = translate_link(ctx, pkt, hop);
	void *ip = c.pos;
	__u64 difference;

	if (!ip)
		return -1;
	if (flow->family == FAMILY_V4) {
		struct iphdr *header = ip;

		if (ip + sizeof(*header) > c.end)
			return -1;
		difference = translate_ipv4(header, to);
		header->check = checksum_after(header->check, replace_id_ipv4(header, mask));
	} else {
		__be32 *id = ip + ((lb->hdr.id_at - pkt->l3_offset) & TRANSLATE_L4);

		if (ip + sizeof(struct ipv6hdr) > c.end || (void *)(id + 1) > c.end)
			return -1;
		difference = translate_ipv6(ip, to);
		replace_id_ipv6(id, mask);
	}
	c.pos = ip + l4;
	if (lb->pkt_flags & PKT_FRAG_LATER)
		return translate_later(&c, lb, to, difference);
	return translate_first(&c, pkt, to, difference);
}

#endif
