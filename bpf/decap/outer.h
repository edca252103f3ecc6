/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The outer header of a tunnel's packet, and what may be between it and the inner one. */
#ifndef TOWPATH_DECAP_OUTER_H
#define TOWPATH_DECAP_OUTER_H

#include "abi/decap.h"
#include "decap/between.h"
#include "net/parse.h"

enum ecn {
	ECN_NOT_ECT = 0,
	ECN_ECT_1 = 1,
	ECN_ECT_0 = 2,
	ECN_CE = 3,
	ECN_MASK = 3,
};

enum ipv6_ecn {
	IPV6_ECN_SHIFT = 4, /* within flow_lbl[0], the header's second byte */
};

/* What an outer header says. */
struct outer_header {
	struct decap_key key; /* its destination */
	__u32 length;	      /* of what it carries, as it says */
	__u8 protocol;	      /* IPPROTO_IPIP or IPPROTO_IPV6, also of what is behind GRE or UDP */
	__u8 ecn;
	bool fragment;
	bool malformed;
};

/* In 64 bits: the verifier takes no 32-bit difference of pointers. */
static __always_inline __u32 distance(const void *from, const void *to)
{
	__u64 bytes = to - from;

	barrier_var(bytes);
	return bytes;
}

static __always_inline bool is_tunnel(__u8 protocol)
{
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 ||
	       (takes_gre && protocol == IPPROTO_GRE) || (takes_udp && protocol == IPPROTO_UDP);
}

/* The kernel checks the header it sees, and it will not see this one. */
static __always_inline bool ipv4_checksum_ok(const struct iphdr *ip, const void *end)
{
	const __u32 *word = (const void *)ip;
	__u64 sum = 0;

	for (__u32 i = 0; i < 15; i++) {
		if (i >= ip->ihl)
			break;
		if ((const void *)(word + i + 1) > end)
			return false;
		sum += word[i];
	}
	sum = (sum >> 32) + (__u32)sum;
	sum = (sum >> 16) + (__u16)sum;
	sum = (sum >> 16) + (__u16)sum;
	sum = (sum >> 16) + (__u16)sum;
	return sum == 0xffff;
}

/* Leaves the cursor at the inner header. False: no tunnel's packet. */
static __always_inline bool parse_outer_ipv4(struct xdp_md *ctx, struct cursor *c,
					     struct outer_header *outer)
{
	__s64 left = cursor_left(c);
	__u32 header, length;
	struct iphdr *ip = cursor_take(c, struct iphdr);

	if (!ip || ip->version != 4 || !is_tunnel(ip->protocol))
		return false;
	header = ip->ihl * 4;
	length = bpf_ntohs(ip->tot_len);

	outer->key.addr.word[3] = ip->daddr;
	outer->key.family = FAMILY_V4;
	outer->protocol = ip->protocol;
	outer->ecn = ip->tos & ECN_MASK;
	outer->fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT);
	outer->malformed = header < sizeof(*ip) || length < header ||
			   !frame_reaches(ctx, length, left) || !ipv4_checksum_ok(ip, c->end);
	outer->length = length - header;
	c->pos = (void *)ip + header;
	return true;
}

/*
 * The same. Extension headers, such as the one with RFC 2473's encapsulation
 * limit, are taken off; the options in them are not looked at.
 */
static __always_inline bool parse_outer_ipv6(struct xdp_md *ctx, struct cursor *c,
					     struct outer_header *outer)
{
	__s64 left = cursor_left(c);
	__u32 length, before;
	struct ipv6hdr *ip = cursor_take(c, struct ipv6hdr);
	int result;

	if (!ip || ip->version != 6)
		return false;
	result = parse_ipv6_extensions(c, ip->nexthdr, &outer->protocol);
	if (result == PARSE_FRAGMENT)
		outer->protocol = ((struct ipv6_fragment *)c->pos)[-1].nexthdr;
	else if (result != PARSE_OK)
		return false;
	if (!is_tunnel(outer->protocol))
		return false;
	length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	before = distance(ip, c->pos);

	__builtin_memcpy(&outer->key.addr, &ip->daddr, sizeof(outer->key.addr));
	outer->key.family = FAMILY_V6;
	outer->ecn = ip->flow_lbl[0] >> IPV6_ECN_SHIFT & ECN_MASK;
	outer->fragment = result == PARSE_FRAGMENT;
	outer->malformed = length < before || !frame_reaches(ctx, length, left);
	outer->length = length - before;
	return true;
}

/*
 * Leaves the cursor at the inner header, unless the outer one is a fragment's or malformed. `header`
 * is where the outer one begins. False: no tunnel's packet.
 */
static __always_inline bool parse_outer(struct xdp_md *ctx, struct cursor *c, void **header,
					struct outer_header *outer)
{
	__be16 ethertype, vlan;
	bool tunnel = false;
	__u32 before;

	ethertype = parse_ethernet(c, &vlan);
	*header = c->pos;
	if (ethertype == bpf_htons(ETH_P_IP))
		tunnel = parse_outer_ipv4(ctx, c, outer);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		tunnel = parse_outer_ipv6(ctx, c, outer);
	if (!tunnel)
		return false;

	if (unlikely(takes_gre || takes_udp) && !outer->fragment && !outer->malformed) {
		before = outer->length;
		if (!take_between(c, &outer->protocol, &outer->length))
			return false;
		outer->malformed = outer->length > before;
	} else if (outer->protocol == IPPROTO_UDP) {
		/* Which port it is for the first fragment says, if it can be believed. */
		return false;
	}
	return true;
}

#endif
