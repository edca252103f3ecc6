/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The outer header: IPIP (RFC 2003), and IPv6 around either family (RFC 2473); and what may be between
 * it and the packet: GRE (RFC 2784), UDP, GUE (draft-ietf-intarea-gue-09).
 *
 * The packet inside is not touched. Its TTL in particular stays: who encapsulates has it
 * for an address of this node's own, so that this is no forwarding of it (RFC 2003, 3.1).
 */
#ifndef TOWPATH_NET_ENCAP_H
#define TOWPATH_NET_ENCAP_H

#include "abi/encap.h"
#include "abi/net.h"
#include "net/checksum.h"
#include "net/parse.h"
#include "net/tunnels.h"

enum encap_limits {
	OUTER_TTL = 64,
	OUTER_ID_STEP = 0x9e37,
	OUTER_BETWEEN_MAX = 12,
};

/* In the dynamic range, by bits that have not chosen the backend. */
static __always_inline __u16 encap_source_port(__u32 hash)
{
	return 0xc000 | (hash & 0x3fff);
}

/*
 * What the outer header says, decided before the packet is touched. The family is read where it
 * lies, in a map: there it is any number to the verifier, which goes through all that follows
 * once for each family if it is told which one has been seen. Where only one can be it is a
 * constant, and the compiler leaves the other out.
 */
struct outer {
	const struct address *daddr;
	const __u8 *family; /* of daddr, enum family */
	const struct next_hop *hop;
	struct address saddr;
	__u32 length;  /* of all headers: 20 or 40, and what is between */
	__u32 between; /* bytes of that, 0 = IPIP */
	__u32 encap;   /* see enum encap_kind */
	bool wraps;    /* whether it may be another than IPIP: a constant at each place */
	__u32 hash;
	__be16 vlan; /* tag in front of it, 0 = none */
};

static __always_inline __u32 outer_length(__u8 family)
{
	return family == FAMILY_V4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

/*
 * Fragments of one packet share its ID, but the packets around them must not: if these
 * are fragmented in their turn, their pieces would be taken for one another's. An odd
 * multiple of the offset differs for all of them.
 */
static __always_inline __be16 outer_id(const struct packet *pkt)
{
	__u16 offset = bpf_ntohs(pkt->fragment) & IPV4_OFFSET;

	return bpf_htons(bpf_ntohs(pkt->id) + offset * OUTER_ID_STEP);
}

/* What follows the outer header. `inner`: family of the packet. */
static __always_inline __u32 outer_protocol(const struct outer *outer, __u8 inner)
{
	if (!outer->wraps || !outer->between)
		return inner == FAMILY_V4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	return (outer->encap & ENCAP_KIND) == ENCAP_GRE ? IPPROTO_GRE : IPPROTO_UDP;
}

/*
 * RFC 2003: DF is copied, so that path MTU discovery works through the tunnel.
 * Where it is clear the packet may be fragmented, and the outer ID must be as
 * unique as the inner one is (RFC 6864): it is made of it.
 */
static __always_inline void write_ipv4(struct iphdr *ip, const struct packet *pkt,
				       const struct outer *outer)
{
	__u32 length = bpf_htons(pkt->l3_length + sizeof(*ip) + outer->between);
	__be32 saddr = outer->saddr.word[3], daddr = outer->daddr->word[3];
	__u32 second = (__u32)bpf_htons(IPV4_DONT_FRAGMENT) << 16;
	__u32 first = 0x45 | pkt->tos << 8 | length << 16;
	__u32 third = OUTER_TTL | outer_protocol(outer, FAMILY_V4) << 8;
	wide32 *word = (wide32 *)ip;

	if (pkt->flow.family == FAMILY_V4 && !(pkt->fragment & bpf_htons(IPV4_DONT_FRAGMENT)))
		second = outer_id(pkt);
	word[0] = first;
	word[1] = second;
	word[2] = third | (__u32)checksum_of((__u64)first + second + third + saddr + daddr) << 16;
	word[3] = saddr;
	word[4] = daddr;
}

static __always_inline void write_address(void *to, const struct address *from)
{
	((wide64 *)to)[0] = ((const wide64 *)from)[0];
	((wide64 *)to)[1] = ((const wide64 *)from)[1];
}

/* RFC 6438: the flow label carries the flow's hash to the fabric's ECMP. */
static __always_inline void write_ipv6(struct ipv6hdr *ip, const struct packet *pkt,
				       const struct outer *outer)
{
	__u32 label = outer->hash & 0xfffff, length = pkt->l3_length + outer->between;

	/* Or the compiler keeps the length as it lay in the packet, beside the one in host order. */
	barrier_var(length);
	*(__be32 *)ip = bpf_htonl(6U << 28 | (__u32)pkt->tos << 20 | label);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = outer_protocol(outer, pkt->flow.family);
	ip->hop_limit = OUTER_TTL;
	write_address(&ip->saddr, &outer->saddr);
	write_address(&ip->daddr, outer->daddr);
}

/* Both addresses at once: they lie in a next hop as they lie in a frame. */
static __always_inline void write_ethernet(struct ethhdr *eth, const struct next_hop *hop,
					   __be16 proto)
{
	const wide32 *from = (const wide32 *)hop->dmac;
	wide32 *to = (wide32 *)eth;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	*(wide16 *)(to + 3) = proto;
}

/* `between` of struct outer. */
static __always_inline __u32 encap_between(__u32 encap)
{
	return encap & ENCAP_LENGTH;
}

/*
 * Writes it behind the outer header, at `at`, where OUTER_BETWEEN_MAX bytes are. UDP has no checksum: of
 * what is within, that has its own (RFC 6935 for IPv6). Its source port is of the flow's hash, so that
 * the fabric's ECMP and the backend's RSS tell flows apart.
 */
static __always_inline void write_between(void *at, const struct packet *pkt,
					  const struct outer *outer)
{
	bool v4 = pkt->flow.family == FAMILY_V4;
	struct udphdr *udp = at;
	struct gue_header *gue = (void *)(udp + 1);

	if ((outer->encap & ENCAP_KIND) == ENCAP_GRE) {
		struct gre_header *gre = at;

		gre->flags = 0;
		gre->ethertype = v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
		return;
	}
	udp->source = bpf_htons(encap_source_port(outer->hash));
	udp->dest = bpf_htons(outer->encap >> ENCAP_PORT_SHIFT);
	udp->len = bpf_htons(pkt->l3_length + outer->between);
	udp->check = 0;
	if ((outer->encap & ENCAP_KIND) == ENCAP_GUE0) {
		gue->length = 0;
		gue->protocol = v4 ? IPPROTO_IPIP : IPPROTO_IPV6;
		gue->flags = 0;
	}
}

static __always_inline __u32 link_length(__be16 vlan)
{
	return sizeof(struct ethhdr) + (vlan ? sizeof(struct vlan_tag) : 0);
}

/*
 * Writes the link layer of a next hop, with its tag if it has one, and moves the cursor behind it.
 * False: there are not so many bytes there.
 */
static __always_inline bool write_link(struct cursor *c, const struct next_hop *hop, __be16 vlan,
				       __be16 proto, __u32 behind)
{
	struct ethhdr *eth = c->pos;
	struct vlan_tag *tag;

	if (likely(!vlan)) {
		if ((void *)(eth + 1) + behind > c->end)
			return false;
		write_ethernet(eth, hop, proto);
		c->pos = eth + 1;
		return true;
	}
	tag = (void *)(eth + 1);
	if ((void *)(tag + 1) + behind > c->end)
		return false;
	write_ethernet(eth, hop, bpf_htons(ETH_P_8021Q));
	tag->tci = vlan;
	tag->ethertype = proto;
	c->pos = tag + 1;
	return true;
}

/* Returns 0, or -1 if the driver left no room; the packet is then as it was. */
static __always_inline int xdp_encap(struct xdp_md *ctx, const struct packet *pkt,
				     const struct outer *outer)
{
	__u32 link = link_length(outer->vlan);
	/* Whatever is between: of the packet there is more. */
	const __u32 behind = outer->wraps ? OUTER_BETWEEN_MAX : 0;
	bool v4 = *outer->family == FAMILY_V4;
	struct cursor c;

	if (bpf_xdp_adjust_head(ctx, (int)pkt->l3_offset - (int)(link + outer->length)))
		return -1;
	c = cursor_of(ctx);
	if (v4) {
		if (!write_link(&c, outer->hop, outer->vlan, bpf_htons(ETH_P_IP),
				sizeof(struct iphdr) + behind))
			return -1;
		write_ipv4(c.pos, pkt, outer);
		if (outer->wraps && outer->between)
			write_between(c.pos + sizeof(struct iphdr), pkt, outer);
	} else {
		if (!write_link(&c, outer->hop, outer->vlan, bpf_htons(ETH_P_IPV6),
				sizeof(struct ipv6hdr) + behind))
			return -1;
		write_ipv6(c.pos, pkt, outer);
		if (outer->wraps && outer->between)
			write_between(c.pos + sizeof(struct ipv6hdr), pkt, outer);
	}
	return 0;
}

/*
 * The same in tc, for a packet whose link layer the kernel is to write. Room is made in a way
 * that tells the kernel of the tunnel: a checksum or segments that are still to be made are
 * then left only to devices that can make them inside.
 */
static __always_inline int skb_encap(struct __sk_buff *skb, const struct packet *pkt,
				     const struct outer *outer)
{
	bool v4 = *outer->family == FAMILY_V4;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		      (v4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	const __u32 behind = outer->wraps ? OUTER_BETWEEN_MAX : 0;
	struct cursor c;
	struct ethhdr *eth;

	if (outer->wraps && outer->between)
		flags |= (outer->encap & ENCAP_KIND) == ENCAP_GRE ? BPF_F_ADJ_ROOM_ENCAP_L4_GRE
								  : BPF_F_ADJ_ROOM_ENCAP_L4_UDP;

	if (bpf_skb_adjust_room(skb, outer->length, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	c = cursor_of(skb);
	eth = cursor_take(&c, struct ethhdr);
	if (!eth)
		return -1;
	if (v4) {
		if (c.pos + sizeof(struct iphdr) + behind > c.end)
			return -1;
		eth->h_proto = bpf_htons(ETH_P_IP);
		write_ipv4(c.pos, pkt, outer);
		if (outer->wraps && outer->between)
			write_between(c.pos + sizeof(struct iphdr), pkt, outer);
	} else {
		if (c.pos + sizeof(struct ipv6hdr) + behind > c.end)
			return -1;
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		write_ipv6(c.pos, pkt, outer);
		if (outer->wraps && outer->between)
			write_between(c.pos + sizeof(struct ipv6hdr), pkt, outer);
	}
	return 0;
}

#endif
