/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Takes the outer header off: check the inner header -> merge the ECN fields and count the hop -> move
 * the link header over. Nothing is written before the last check has passed.
 */
#ifndef TOWPATH_DECAP_UNWRAP_H
#define TOWPATH_DECAP_UNWRAP_H

#include "decap/outer.h"

enum unwrap_verdict {
	UNWRAP_NO_HOP = DECAP_MAX, /* of a packet that goes on: no hop is left */
};

/* RFC 6040, section 4.2. ECN_MASK + 1: the packet has to be dropped. */
static __always_inline __u8 merge_ecn(__u8 outer, __u8 inner)
{
	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? ECN_MASK + 1 : ECN_NOT_ECT;
	if (outer == ECN_CE || (outer == ECN_ECT_1 && inner == ECN_ECT_0))
		return outer;
	return inner;
}

/*
 * RFC 1624, equation 3: ~(~HC + ~m + m'). Of the 16-bit words m only the low byte of the one and the
 * high byte of the other change, so the sum of ~m + m' is 0xffff and the difference of these bytes.
 */
static __always_inline void set_ipv4(struct iphdr *ip, __u8 ecn, const __u8 hops)
{
	__u8 tos = (ip->tos & ~ECN_MASK) | ecn;
	__u32 sum = (__u16)~bpf_ntohs(ip->check) + 0xffff + tos - ip->tos - (hops << 8);

	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	ip->check = bpf_htons((__u16)~sum);
	ip->tos = tos;
	ip->ttl -= hops;
}

/* Checks the inner header and brings its ECN field and its TTL up to date. */
static __always_inline __u32 open_ipv4(struct cursor c, const struct outer_header *outer,
				       const __u8 hops, __u32 *length)
{
	struct iphdr *ip = cursor_take(&c, struct iphdr);
	__u8 ecn;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return DECAP_DROP_MALFORMED;
	*length = bpf_ntohs(ip->tot_len);
	if (*length < ip->ihl * 4 || *length > outer->length)
		return DECAP_DROP_MALFORMED;

	ecn = merge_ecn(outer->ecn, ip->tos & ECN_MASK);
	if (ecn > ECN_MASK)
		return DECAP_DROP_ECN;
	if (hops && ip->ttl <= hops)
		return UNWRAP_NO_HOP;
	if (hops || ecn != (ip->tos & ECN_MASK))
		set_ipv4(ip, ecn, hops);
	return DECAP_UNWRAPPED;
}

static __always_inline __u32 open_ipv6(struct cursor c, const struct outer_header *outer,
				       const __u8 hops, __u32 *length)
{
	struct ipv6hdr *ip = cursor_take(&c, struct ipv6hdr);
	__u8 ecn;

	if (!ip || ip->version != 6)
		return DECAP_DROP_MALFORMED;
	*length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (*length > outer->length)
		return DECAP_DROP_MALFORMED;

	ecn = merge_ecn(outer->ecn, ip->flow_lbl[0] >> IPV6_ECN_SHIFT & ECN_MASK);
	if (ecn > ECN_MASK)
		return DECAP_DROP_ECN;
	if (hops && ip->hop_limit <= hops)
		return UNWRAP_NO_HOP;
	ip->hop_limit -= hops;
	ip->flow_lbl[0] = (ip->flow_lbl[0] & ~(ECN_MASK << IPV6_ECN_SHIFT)) | ecn << IPV6_ECN_SHIFT;
	return DECAP_UNWRAPPED;
}

/*
 * Moves the link header, whose last two bytes are an EtherType, over the outer
 * header. `halves`: its length in 16-bit words, a constant at each call.
 */
static __always_inline bool strip(struct xdp_md *ctx, const __u32 halves, __u32 outer_length,
				  __be16 ethertype)
{
	struct cursor c = cursor_of(ctx);
	__be16 link[(ETH_HLEN + sizeof(struct vlan_tag)) / 2];
	__be16 *frame = c.pos;

	if ((void *)(frame + halves) > c.end)
		return false;
	for (__u32 i = 0; i < halves; i++)
		link[i] = frame[i];
	link[halves - 1] = ethertype;

	if (bpf_xdp_adjust_head(ctx, outer_length))
		return false;

	c = cursor_of(ctx);
	frame = c.pos;
	if ((void *)(frame + halves) > c.end)
		return false;
	for (__u32 i = 0; i < halves; i++)
		frame[i] = link[i];
	return true;
}

/*
 * The cursor is at the inner header, in a frame that begins at `frame` and whose outer header does at
 * `header`. `hops`, a constant: 0 of a packet that has arrived, 1 of one that goes on. `length`: of the
 * inner packet, as it says. Returns an enum decap_verdict, or UNWRAP_NO_HOP.
 */
static __always_inline __u32 unwrap(struct xdp_md *ctx, const struct cursor *inner,
				    const void *frame, const void *header,
				    const struct outer_header *outer, const __u8 hops,
				    __u32 *length)
{
	__u32 link_length = distance(frame, header), outer_length = distance(header, inner->pos);
	__u32 verdict;
	__be16 ethertype;
	bool stripped;

	if (outer->protocol == IPPROTO_IPIP) {
		verdict = open_ipv4(*inner, outer, hops, length);
		ethertype = bpf_htons(ETH_P_IP);
	} else {
		verdict = open_ipv6(*inner, outer, hops, length);
		ethertype = bpf_htons(ETH_P_IPV6);
	}
	if (verdict != DECAP_UNWRAPPED)
		return verdict;

	if (link_length == ETH_HLEN)
		stripped = strip(ctx, ETH_HLEN / 2, outer_length, ethertype);
	else
		stripped = strip(ctx, (ETH_HLEN + sizeof(struct vlan_tag)) / 2, outer_length,
				 ethertype);
	return stripped ? DECAP_UNWRAPPED : DECAP_DROP_ADJUST;
}

#endif
