/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Translates an ICMP error: its own addresses, and what it quotes. */
#ifndef TOWPATH_SNAT_REWRITE_ICMP_H
#define TOWPATH_SNAT_REWRITE_ICMP_H

#include "snat/rewrite_fragment.h"

/*
 * The quoted packet went the other way: its source is who the error is for. A fragment gets
 * the identification back that it had come to us with.
 */
static __always_inline int quoted_addresses_v4(struct iphdr *ip, void *end,
					       const struct nat_tuple *to, bool fragment,
					       __u8 protocol, __u64 *difference, __u64 *all)
{
	__u64 header;
	__u16 before;

	if ((void *)(ip + 1) > end)
		return -1;
	*difference = difference32(ip->saddr, to->daddr.word[3]) +
		      difference32(ip->daddr, to->saddr.word[3]);
	header = *difference;
	if (fragment)
		header += replace_id_ipv4(ip, identification_mask(&to->daddr, &to->saddr, FAMILY_V4,
								  protocol, flow_seed));
	before = ip->check;
	ip->check = checksum_after(before, header);
	ip->saddr = to->daddr.word[3];
	ip->daddr = to->saddr.word[3];
	*all += header + difference16(before, ip->check);
	return 0;
}

static __always_inline int quoted_addresses_v6(struct ipv6hdr *ip, void *end,
					       const struct nat_tuple *to, __u64 *difference,
					       __u64 *all)
{
	struct address *ends = (struct address *)&ip->saddr;

	if ((void *)(ip + 1) > end)
		return -1;
	*difference = replace_address(&ends[0], &to->daddr) + replace_address(&ends[1], &to->saddr);
	*all += *difference;
	return 0;
}

static __always_inline int quoted_id_v6(void *ip, void *end, const struct nat_tuple *to,
					const struct nat_quote *quote, __u64 *all)
{
	__be32 *id = ip + (quote->id & TRANSLATE_L4);

	if (!quote->id)
		return 0;
	if ((void *)(id + 1) > end)
		return -1;
	*all += replace_id_ipv6(
		id, identification_mask(&to->daddr, &to->saddr, FAMILY_V6, 0, flow_seed));
	return 0;
}

/* The quoted ports, and the checksum behind them if the quote is long enough to have it. */
static __always_inline int quoted_transport(void *ip, void *end, const struct nat_tuple *to,
					    const struct nat_quote *quote, bool tcp,
					    __u64 difference, __u64 *all)
{
	struct ports *ports = ip + (quote->ports & TRANSLATE_L4);
	__u16 *check = ip + (quote->check & TRANSLATE_L4), check_before;
	__u32 before;

	if ((void *)(ports + 1) > end)
		return -1;
	before = *(__u32 *)ports;
	ports->source = to->dport;
	ports->dest = to->sport;
	difference += difference32(before, *(__u32 *)ports);
	*all += difference32(before, *(__u32 *)ports);
	if (!quote->check)
		return 0;
	if ((void *)(check + 1) > end)
		return -1;
	check_before = *check;
	*check = tcp ? checksum_after(check_before, difference)
		     : udp_checksum_after(check_before, difference);
	*all += difference16(check_before, *check);
	return 0;
}

/*
 * Returns 0, or -1 if the driver left no room. ICMP's checksum covers all of the quote, and
 * for IPv6 the addresses in front.
 */
static __always_inline int translate_error(struct xdp_md *ctx, const struct packet *pkt,
					   const struct nat_tuple *to,
					   const struct nat_quote *quote,
					   const struct next_hop *hop)
{
	struct cursor c = translate_link(ctx, pkt, hop);
	__u32 l4 = pkt->l4_offset & TRANSLATE_L4, quoted = quote->at & TRANSLATE_L4;
	bool tcp = pkt->flow.protocol == IPPROTO_TCP;
	__u64 difference = 0, all = 0;
	void *ip = c.pos;
	__u16 *check;
	int result;

	if (!ip)
		return -1;
	if (pkt->flow.family == FAMILY_V4) {
		if (ip + sizeof(struct iphdr) > c.end)
			return -1;
		translate_ipv4(ip, to);
		result = quoted_addresses_v4(ip + quoted, c.end, to, quote->id, pkt->flow.protocol,
					     &difference, &all);
	} else {
		if (ip + sizeof(struct ipv6hdr) > c.end)
			return -1;
		all = translate_ipv6(ip, to);
		result = quoted_addresses_v6(ip + quoted, c.end, to, &difference, &all) ||
			 quoted_id_v6(ip, c.end, to, quote, &all);
	}
	if (result || quoted_transport(ip, c.end, to, quote, tcp, difference, &all))
		return -1;
	check = ip + l4 + 2;
	if ((void *)(check + 1) > c.end)
		return -1;
	*check = checksum_after(*check, all);
	return 0;
}

#endif
