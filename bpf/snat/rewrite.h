/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes other addresses and ports into a packet, one hop less, and the way out in front.
 * Checksums are followed, never made anew: a packet that was broken stays so.
 */
#ifndef TOWPATH_SNAT_REWRITE_H
#define TOWPATH_SNAT_REWRITE_H

#include "net/checksum.h"
#include "net/encap.h"

enum translate_limits {
	TRANSLATE_L4 = 0xfff, /* farthest transport header in an IP packet, IPv6 extensions too */
};

/* What a packet becomes. */
struct nat_tuple {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
};

/* Of the packet that an ICMP error quotes: where that has what, from the error's IP header on. */
struct nat_quote {
	__u32 at; /* its own IP header; 0: the packet is no error */
	__u32 ports;
	__u32 check; /* 0: the quote ends before it */
	__u32 id;    /* 0: what is quoted is no fragment */
};

/* Both return the sum of differences that the transport's checksum covers. */
static __always_inline __u64 translate_ipv4(struct iphdr *ip, const struct nat_tuple *to)
{
	__u64 difference = difference32(ip->saddr, to->saddr.word[3]) +
			   difference32(ip->daddr, to->daddr.word[3]);
	ip->ttl--; /* it is the low byte of a word, and not 0, so that nothing is borrowed */
	ip->check = checksum_after(ip->check, difference + difference16(1, 0));
	ip->saddr = to->saddr.word[3];
	ip->daddr = to->daddr.word[3];
	return difference;
}

static __always_inline __u64 translate_ipv6(struct ipv6hdr *ip, const struct nat_tuple *to)
{
	struct address *ends = (struct address *)&ip->saddr;

	ip->hop_limit--;
	return replace_address(&ends[0], &to->saddr) + replace_address(&ends[1], &to->daddr);
}

/* Returns the difference. */
static __always_inline __u64 replace_ports(struct ports *ports, const struct nat_tuple *to)
{
	__u64 after = to->sport | (__u64)to->dport << 16;
	__u32 before = *(wide32 *)ports;

	barrier_var(after); /* or it is put together twice, of 32 bits and of 64 */
	*(wide32 *)ports = after;
	return difference32(before, 0) + after;
}

static __always_inline __u32 transport_checksum_at(bool tcp)
{
	return tcp ? TCP_CHECKSUM_AT : 6;
}

/* `difference`: of the addresses. The checksum is where the protocol has it, and is there. */
static __always_inline void translate_transport(void *header, const struct nat_tuple *to, bool tcp,
						__u64 difference)
{
	__u16 *check = header + transport_checksum_at(tcp);

	difference += replace_ports(header, to);
	*check = tcp ? checksum_after(*check, difference) : udp_checksum_after(*check, difference);
}

/* The same, if it is. */
static __always_inline int translate_ports(struct cursor *c, const struct nat_tuple *to, bool tcp,
					   __u64 difference)
{
	if (c->pos + transport_checksum_at(tcp) + sizeof(__u16) > c->end)
		return -1;
	translate_transport(c->pos, to, tcp, difference);
	return 0;
}

/*
 * Puts the link layer of the way out in front of the packet. Returns a cursor at the IP
 * header, whose `pos` is NULL if the driver had no room.
 */
static __always_inline struct cursor translate_link(struct xdp_md *ctx, const struct packet *pkt,
						    const struct next_hop *hop)
{
	__be16 vlan = hop->tx_vlan;
	__u32 link = link_length(vlan);
	bool v4 = pkt->flow.family == FAMILY_V4;
	struct cursor c = {};

	if (pkt->l3_offset != link && bpf_xdp_adjust_head(ctx, (int)pkt->l3_offset - (int)link))
		return c;
	c = cursor_of(ctx);
	if (!write_link(&c, hop, vlan, v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6), 0))
		c.pos = NULL;
	return c;
}

/* Returns 0, or -1 if the driver left no room; the packet is then as it was. */
static __always_inline int translate(struct xdp_md *ctx, const struct packet *pkt,
				     const struct nat_tuple *to, const struct next_hop *hop)
{
	struct cursor c = translate_link(ctx, pkt, hop);
	__u32 l4 = pkt->l4_offset & TRANSLATE_L4;
	bool tcp = pkt->flow.protocol == IPPROTO_TCP;
	void *ip = c.pos;
	__u64 difference;

	if (!ip)
		return -1;
	if (pkt->flow.family == FAMILY_V4) {
		if (ip + sizeof(struct iphdr) > c.end)
			return -1;
		difference = translate_ipv4(ip, to);
	} else {
		if (ip + sizeof(struct ipv6hdr) > c.end)
			return -1;
		difference = translate_ipv6(ip, to);
	}
	c.pos = ip + l4;
	return translate_ports(&c, to, tcp, difference);
}

#endif
