/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6 for VIPs. Errors go to the backend whose packet they quote; what is too
 * large for the way to its backend is answered, and so are echo requests.
 *
 * An error's backend is chosen by the flow of the quoted packet, turned round: so it is the
 * one that the flow's packets go to, on every load balancer of a group.
 */
#ifndef TOWPATH_LB_ICMP_H
#define TOWPATH_LB_ICMP_H

#include "net/encap.h"
#include "net/pull.h"
#include "lb/service.h"
#include "lb/headers.h"
#include "lb/transmit.h"

/* <linux/icmp.h> needs a libc. Both families have this header. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 rest; /* MTU, identifier and sequence, nothing */
};

struct icmp_over_ipv4 {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct icmp_over_ipv6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

enum icmp_types {
	ICMP_ECHO_REPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP_FRAG_NEEDED = 4, /* code of ICMP_DEST_UNREACH */
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_TOO_BIG = 2,
	ICMPV6_PARAMETER_PROBLEM = 4,
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
};

enum icmp_limits {
	/* Of the transport header that RFC 792 has every error quote. */
	ICMP_QUOTED_TRANSPORT = 8,
	/* RFC 1812, 4.3.2.3: 576 bytes in all. */
	ICMP_QUOTE = 576 - 20 - 8,
	ICMP_QUOTE_SHORT = 68, /* for packets of less than that */
	ICMP_MIN_MTU = 68,     /* RFC 791 */
	ICMP_TOS = 0xc0,       /* RFC 1812, 4.3.2.5: internetwork control */
	/* RFC 4443, 2.4: the smallest MTU of IPv6 in all. */
	ICMPV6_SMALLEST_MTU = 1280,
	ICMPV6_QUOTE = 1280 - 40 - 8,
	/* bpf_csum_diff() takes no more at once before 6.13. */
	ICMP_SUM_AT_ONCE = 512,
	/* The checksum of an echo request of nothing but zeros behind its type. */
	ICMP_ECHO_OF_ZEROS = 0xf7ff,
	/* 8 bytes each, what fits into an Ethernet frame behind an IPv4 header and 4 more bytes. */
	ICMP_ZEROS_LOOKED_AT = 185,
};

/* ---- Errors ---- */

static __always_inline bool icmp_is_error(bool v4, __u8 type)
{
	if (v4)
		return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
		       type == ICMP_PARAMETER_PROBLEM;
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMETER_PROBLEM;
}

/*
 * Gives an error, whose quote is next, the flow of the quoted packet as packets of its other
 * side have it, and reads up to the quoted ports. The error must be addressed to who sent the
 * quoted packet. A quote that isn't of a TCP or UDP packet, or too short to tell, leaves the
 * error as it is: VERDICT_PASS_PROTOCOL.
 */
__noinline int icmp_quoted(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_key ports = {};

	if (!lb || read_ip(ctx, slot) != PARSE_OK)
		return VERDICT_PASS_PROTOCOL;
	if (!address_equal(&lb->hdr.flow.saddr, &lb->pkt.flow.daddr))
		return VERDICT_PASS_PROTOCOL;
	if (!hdr_ports(&lb->hdr, &lb->pkt, cursor_of(ctx), ICMP_QUOTED_TRANSPORT, &ports))
		return VERDICT_PASS_PROTOCOL;
	lb->pkt.flow.saddr = lb->hdr.flow.daddr;
	lb->pkt.flow.sport = ports.dport;
	lb->pkt.flow.dport = ports.sport;
	lb->pkt.flow.protocol = ports.protocol;
	return PARSE_OK;
}

/* ---- Answers ---- */

/* Whether an address is one host's, and not this one's: RFC 1122, 3.2.2; RFC 4443, 2.4. */
static __always_inline bool icmp_answerable(const struct flow_key *flow)
{
	const struct address *from = &flow->saddr;
	__u8 first = bpf_ntohl(from->word[3]) >> 24;

	if (flow->family == FAMILY_V4)
		return first && first != 127 && first < 224;
	if (bpf_ntohl(from->word[0]) >> 24 == 0xff)
		return false;
	return address_is_source(from);
}

/* The link header of a frame that goes back where another came from, its tag as it was. */
struct icmp_link {
	struct ethhdr eth;
	struct vlan_tag tag;
	bool tagged;
};

/* Reads it off the frame that came. False: nobody is to be answered. */
static __always_inline bool icmp_link_back(struct cursor *c, const struct lb_ctx *lb,
					   struct icmp_link *link)
{
	struct ethhdr *eth = cursor_take(c, struct ethhdr);
	struct vlan_tag *tag;

	/* To all or to many on the link (a trace's frame has other things there). */
	if (!eth || (!lb->traced && eth->h_dest[0] & 1))
		return false;
	__builtin_memcpy(link->eth.h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(link->eth.h_source, eth->h_dest, ETH_ALEN);
	link->eth.h_proto = eth->h_proto;
	link->tagged = eth->h_proto == bpf_htons(ETH_P_8021Q);
	if (!link->tagged)
		return true;
	tag = cursor_take(c, struct vlan_tag);
	if (!tag)
		return false;
	link->tag = *tag;
	return true;
}

/* Writes it, and moves the cursor behind it. */
static __always_inline bool icmp_write_link(struct cursor *c, const struct icmp_link *link)
{
	struct ethhdr *eth = cursor_take(c, struct ethhdr);
	struct vlan_tag *tag;

	if (!eth)
		return false;
	*eth = link->eth;
	if (!link->tagged)
		return true;
	tag = cursor_take(c, struct vlan_tag);
	if (!tag)
		return false;
	*tag = link->tag;
	return true;
}

/* Adds up a constant number of bytes; a packet's end has been checked before. */
static __always_inline __s64 icmp_sum(void *data, const __u32 bytes, __s64 sum)
{
	__u32 at = 0;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (bytes - at <= ICMP_SUM_AT_ONCE)
			break;
		sum = bpf_csum_diff(NULL, 0, data + at, ICMP_SUM_AT_ONCE, (__u32)sum);
		at += ICMP_SUM_AT_ONCE;
	}
	return bpf_csum_diff(NULL, 0, data + at, bytes - at, (__u32)sum);
}

static __always_inline __u16 icmp_fold(__s64 sum)
{
	__u32 folded = (__u32)sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

static __always_inline bool too_big_ipv4(struct cursor *c, const struct lb_ctx *lb, __u32 mtu,
					 bool whole)
{
	__u32 quote = whole ? ICMP_QUOTE : ICMP_QUOTE_SHORT;
	struct icmp_over_ipv4 *header = cursor_take(c, struct icmp_over_ipv4);
	struct icmp_header *icmp;
	struct iphdr *ip;

	if (!header)
		return false;
	ip = &header->ip;
	icmp = &header->icmp;
	*(__be16 *)ip = bpf_htons(0x4500 | ICMP_TOS);
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + quote);
	ip->id = 0;
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = lb->pkt.flow.daddr.word[3];
	ip->daddr = lb->pkt.flow.saddr.word[3];
	ip->check = ipv4_checksum(ip);

	*(__be32 *)icmp = bpf_htonl(ICMP_DEST_UNREACH << 24 | ICMP_FRAG_NEEDED << 16);
	icmp->rest = bpf_htonl(mtu);
	if (whole) {
		if ((void *)icmp + sizeof(*icmp) + ICMP_QUOTE > c->end)
			return false;
		icmp->checksum = icmp_fold(icmp_sum(icmp, sizeof(*icmp) + ICMP_QUOTE, 0));
	} else {
		if ((void *)icmp + sizeof(*icmp) + ICMP_QUOTE_SHORT > c->end)
			return false;
		icmp->checksum = icmp_fold(icmp_sum(icmp, sizeof(*icmp) + ICMP_QUOTE_SHORT, 0));
	}
	return true;
}

/* What goes into an ICMPv6 checksum besides the message: RFC 8200, 8.1. */
struct icmpv6_pseudo {
	struct address saddr;
	struct address daddr;
	__be32 length;
	__be32 nexthdr;
};

static __always_inline bool too_big_ipv6(struct cursor *c, const struct lb_ctx *lb, __u32 mtu)
{
	const __u32 length = sizeof(struct icmp_header) + ICMPV6_QUOTE;
	struct icmp_over_ipv6 *header = cursor_take(c, struct icmp_over_ipv6);
	struct icmpv6_pseudo pseudo = {
		.saddr = lb->pkt.flow.daddr,
		.daddr = lb->pkt.flow.saddr,
		.length = bpf_htonl(length),
		.nexthdr = bpf_htonl(IPPROTO_ICMPV6),
	};
	struct icmp_header *icmp;
	struct ipv6hdr *ip;

	if (!header)
		return false;
	ip = &header->ip;
	icmp = &header->icmp;
	*(__be32 *)ip = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, &pseudo.saddr, 16);
	__builtin_memcpy(&ip->daddr, &pseudo.daddr, 16);

	*(__be32 *)icmp = bpf_htonl(ICMPV6_TOO_BIG << 24);
	icmp->rest = bpf_htonl(mtu);
	if ((void *)icmp + length > c->end)
		return false;
	icmp->checksum = icmp_fold(
		icmp_sum(icmp, length, bpf_csum_diff(NULL, 0, (void *)&pseudo, sizeof(pseudo), 0)));
	return true;
}

/*
 * Whether somebody is told of packets that he allows to be fragmented. RFC 1191 and 1812 know no
 * such answer, since a router would fragment; here the packet is lost otherwise.
 */
static __always_inline bool too_big_without_df(void)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && !set->too_big_df;
}

/*
 * Whether a sender can be told that a packet is too large, and `mtu` what he may send. Not who
 * sent an error, nor with IPv4 for the later fragments (RFC 1122, 3.2.2). IPv6 packets of 1280
 * bytes nobody makes smaller.
 */
static __always_inline bool too_big_answerable(const struct lb_ctx *lb, __u32 mtu)
{
	if (lb->pkt_flags & PKT_ICMP_ERROR || !icmp_answerable(&lb->pkt.flow))
		return false;
	if (lb->pkt.flow.family == FAMILY_V6)
		return lb->pkt.l3_length > ICMPV6_SMALLEST_MTU;
	if (mtu < ICMP_MIN_MTU || lb->pkt_flags & PKT_FRAG_LATER)
		return false;
	return lb->pkt.fragment & bpf_htons(IPV4_DONT_FRAGMENT) || too_big_without_df();
}

/* Whether this CPU may answer one more packet in this jiffy. */
static __always_inline bool too_big_may_answer(const struct lb_ctx *lb)
{
	__u32 cpu = lb->cpu, tick = lb->jiffies;
	struct flow_cpu *budget = bpf_map_lookup_elem(&flow_cpus, &cpu);

	if (lb->traced)
		return true;
	if (!budget)
		return false;
	if (budget->answer_tick != tick) {
		budget->answer_tick = tick;
		budget->answered = 0;
	}
	return budget->answered++ < FLOW_ANSWERS;
}

/*
 * Turns a packet that is too large for the way to its backend into the answer that says so,
 * from the VIP to the client. `mtu`: of the way, without the outer header. Returns the verdict.
 */
__noinline int too_big(struct xdp_md *ctx, __u32 slot, __u32 mtu)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct icmp_link link = {};
	__s32 grow, quote;
	bool v4, whole;
	struct cursor c;
	__s64 length;

	if (!lb || !too_big_answerable(lb, mtu))
		return VERDICT_DROP_MTU;
	pull(ctx, lb->pkt.l3_offset + ICMPV6_QUOTE);
	c = cursor_of(ctx);
	if (!icmp_link_back(&c, lb, &link))
		return VERDICT_DROP_MTU;
	if (!too_big_may_answer(lb))
		return VERDICT_DROP_MTU_QUIET;

	v4 = lb->pkt.flow.family == FAMILY_V4;
	whole = lb->pkt.l3_length >= ICMP_QUOTE;
	if (v4) {
		grow = sizeof(struct iphdr) + sizeof(struct icmp_header);
		quote = whole ? ICMP_QUOTE : ICMP_QUOTE_SHORT;
	} else {
		grow = sizeof(struct ipv6hdr) + sizeof(struct icmp_header);
		quote = ICMPV6_QUOTE;
	}
	if (bpf_xdp_adjust_head(ctx, -grow))
		return VERDICT_DROP_HEADROOM;
	length = frame_length(ctx);
	barrier_var(length);
	if (bpf_xdp_adjust_tail(ctx, (__s32)(lb->pkt.l3_offset + grow + quote - length)))
		return VERDICT_DROP_HEADROOM;
	c = cursor_of(ctx);
	if (!icmp_write_link(&c, &link))
		return VERDICT_DROP_HEADROOM;
	if (v4 ? too_big_ipv4(&c, lb, mtu, whole)
	       : too_big_ipv6(&c, lb, mtu > ICMPV6_SMALLEST_MTU ? mtu : ICMPV6_SMALLEST_MTU))
		return transmit_back(ctx, lb, VERDICT_TX_TOO_BIG);
	return VERDICT_DROP_HEADROOM;
}

/* RFC 1624, equation 3, for one 16-bit word that was `before` and is `after`, host order. */
static __always_inline __sum16 icmp_update(__sum16 check, __u16 before, __u16 after)
{
	__u32 sum = (__u16)~bpf_ntohs(check);

	sum += (__u16)~before + after;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return bpf_htons((__u16)~sum);
}

/*
 * Whether `left` bytes are zeros. What is further on than an Ethernet frame reaches is taken for
 * such: either checksum is then a right one.
 */
static __always_inline bool icmp_rest_is_zero(struct cursor *c, __u32 left)
{
	for (__u32 i = 0; i < ICMP_ZEROS_LOOKED_AT && left >= sizeof(__u64); i++) {
		__u64 *word = cursor_take(c, __u64);

		if (!word || *word)
			return false;
		left -= sizeof(*word);
	}
	for (__u32 i = 0; i < sizeof(__u64) - 1 && left; i++) {
		__u8 *byte = cursor_take(c, __u8);

		if (!byte || *byte)
			return false;
		left--;
	}
	return true;
}

/*
 * Whether the answer to an echo request consists of zeros only. One's complement has two zeros: any
 * other sum that is zero is a negative one, and its checksum 0. Of nothing but zeros it is the
 * positive one, and the checksum 0xffff. An update (RFC 1624) can't know that.
 */
__noinline int icmp_answers_zeros(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct cursor c = cursor_of(ctx);
	struct icmp_header *icmp;

	if (!lb || !hdr_cursor(&lb->hdr, &c))
		return false;
	icmp = cursor_take(&c, struct icmp_header);
	if (!icmp || icmp->checksum != bpf_htons(ICMP_ECHO_OF_ZEROS) || icmp->rest)
		return false;
	return icmp_rest_is_zero(&c, lb->pkt.l3_offset + lb->pkt.l3_length - lb->hdr.at -
					     sizeof(*icmp));
}

/* `zeros`: the answer is nothing else. */
static __always_inline int echo_ipv4(struct cursor *c, bool zeros)
{
	struct icmp_over_ipv4 *header = cursor_take(c, struct icmp_over_ipv4);
	struct icmp_header *icmp;
	struct iphdr *ip;
	__be32 from;

	if (!header || header->icmp.code)
		return VERDICT_PASS_PROTOCOL;
	ip = &header->ip;
	icmp = &header->icmp;
	from = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = from;
	ip->check = icmp_update(ip->check, ip->ttl << 8, OUTER_TTL << 8);
	ip->ttl = OUTER_TTL;
	icmp->type = ICMP_ECHO_REPLY;
	icmp->checksum = icmp_update(icmp->checksum, ICMP_ECHO << 8, ICMP_ECHO_REPLY << 8);
	if (unlikely(zeros))
		icmp->checksum = 0xffff;
	return VERDICT_TX_ECHO;
}

static __always_inline int echo_ipv6(struct cursor *c)
{
	struct icmp_over_ipv6 *header = cursor_take(c, struct icmp_over_ipv6);
	struct icmp_header *icmp;
	struct ipv6hdr *ip;
	struct in6_addr from;

	if (!header || header->icmp.code)
		return VERDICT_PASS_PROTOCOL;
	ip = &header->ip;
	icmp = &header->icmp;
	from = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = from;
	ip->hop_limit = OUTER_TTL;
	icmp->type = ICMPV6_ECHO_REPLY;
	icmp->checksum = icmp_update(icmp->checksum, ICMPV6_ECHO << 8, ICMPV6_ECHO_REPLY << 8);
	return VERDICT_TX_ECHO;
}

/*
 * Answers an echo request to a VIP in place. Options and extension headers may ask for more
 * than that (RFC 1122, 3.2.2.6) and are the kernel's; what they stand in front of is at
 * `hdr.at`.
 */
static __always_inline int icmp_echo(struct xdp_md *ctx, struct lb_ctx *lb)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	__u32 zero = 0, header = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	struct icmp_link link = {};
	struct cursor c;
	bool zeros;
	int verdict;

	if (!set || !set->echo || lb->hdr.at != lb->pkt.l3_offset + header)
		return VERDICT_PASS_PROTOCOL;
	if (!icmp_answerable(&lb->pkt.flow) || !vip_known(lb->slot))
		return VERDICT_PASS_PROTOCOL;
	zeros = v4 && icmp_answers_zeros(ctx, lb->slot);
	c = cursor_of(ctx);
	if (!icmp_link_back(&c, lb, &link))
		return VERDICT_PASS_PROTOCOL;
	verdict = v4 ? echo_ipv4(&c, zeros) : echo_ipv6(&c);
	c = cursor_of(ctx);
	if (verdict != VERDICT_TX_ECHO || !icmp_write_link(&c, &link))
		return verdict;
	return transmit_back(ctx, lb, verdict);
}

/* For a packet of neither TCP nor UDP: PARSE_OK if it belongs to a flow, else the verdict. */
static __always_inline int icmp_parse(struct xdp_md *ctx, struct lb_ctx *lb)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	struct cursor c = cursor_of(ctx);
	__u8 *type;

	if (lb->pkt.flow.protocol != (v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return VERDICT_PASS_PROTOCOL;
	lb->hdr.at = lb->pkt.l3_offset;
	if (read_ip(ctx, lb->slot) != PARSE_OK ||
	    !hdr_within(&lb->hdr, &lb->pkt, sizeof(struct icmp_header)) ||
	    !hdr_cursor(&lb->hdr, &c))
		return VERDICT_PASS_PROTOCOL;
	type = cursor_take(&c, __u8);
	if (!type)
		return VERDICT_PASS_PROTOCOL;
	if (*type == (v4 ? ICMP_ECHO : ICMPV6_ECHO))
		return icmp_echo(ctx, lb);
	if (!icmp_is_error(v4, *type))
		return VERDICT_PASS_PROTOCOL;
	lb->hdr.at += sizeof(struct icmp_header);
	if (icmp_quoted(ctx, lb->slot) != PARSE_OK)
		return VERDICT_PASS_PROTOCOL;
	lb->pkt_flags |= PKT_ICMP_ERROR | PKT_NO_LEARN;
	return PARSE_OK;
}

#endif
