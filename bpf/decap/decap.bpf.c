/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decapsulating end, for backends: takes the outer header off IPIP, IP6IP6,
 * 4in6 and 6in4 packets sent to the addresses in `addresses`, with GRE, FOU or GUE
 * between if that is asked for, and hands what was inside to the kernel, as if it had
 * arrived on the wire like that.
 *
 * parse the outer header -> look its destination up -> check it and the inner
 * header -> merge the ECN fields -> move the link header over -> pass up.
 *
 * Nothing is written before the last check has passed: a packet that is passed
 * untouched is passed as it came.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"
#include "abi/decap.h"
#include "decap/between.h"
#include "net/parse.h"
#include "net/pull.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct decap_key);
	__type(value, struct decap_counters);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decap_cpu);
} verdicts SEC(".maps");

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
struct outer {
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
					     struct outer *outer)
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
					     struct outer *outer)
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
 * RFC 1624, equation 3: ~(~HC + ~m + m'). Of the 16-bit word m only the low byte
 * changes, so ~m + m' is 0xffff and the difference of these bytes.
 */
static __always_inline void set_ipv4_ecn(struct iphdr *ip, __u8 ecn)
{
	__u8 tos = (ip->tos & ~ECN_MASK) | ecn;
	__u32 sum = (__u16)~bpf_ntohs(ip->check) + 0xffff + tos - ip->tos;

	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	ip->check = bpf_htons((__u16)~sum);
	ip->tos = tos;
}

/* Checks the inner header and brings its ECN field up to date. */
static __always_inline enum decap_verdict open_ipv4(struct cursor c, const struct outer *outer,
						    __u32 *length)
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
	if (ecn != (ip->tos & ECN_MASK))
		set_ipv4_ecn(ip, ecn);
	return DECAP_UNWRAPPED;
}

static __always_inline enum decap_verdict open_ipv6(struct cursor c, const struct outer *outer,
						    __u32 *length)
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

static __always_inline enum decap_verdict unwrap(struct xdp_md *ctx, const struct cursor *inner,
						 __u32 link_length, __u32 outer_length,
						 const struct outer *outer,
						 struct decap_counters *counters)
{
	enum decap_verdict verdict;
	__u32 length = 0;
	__be16 ethertype;
	bool stripped;

	if (outer->protocol == IPPROTO_IPIP) {
		verdict = open_ipv4(*inner, outer, &length);
		ethertype = bpf_htons(ETH_P_IP);
	} else {
		verdict = open_ipv6(*inner, outer, &length);
		ethertype = bpf_htons(ETH_P_IPV6);
	}
	if (verdict != DECAP_UNWRAPPED)
		return verdict;

	if (link_length == ETH_HLEN)
		stripped = strip(ctx, ETH_HLEN / 2, outer_length, ethertype);
	else
		stripped = strip(ctx, (ETH_HLEN + sizeof(struct vlan_tag)) / 2, outer_length,
				 ethertype);
	if (!stripped)
		return DECAP_DROP_ADJUST;

	counters->packets++;
	counters->bytes += length;
	return DECAP_UNWRAPPED;
}

__noinline int decapsulate(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);
	struct decap_counters *counters;
	struct outer outer = {};
	void *frame = c.pos, *header;
	__be16 ethertype, vlan;
	__u32 before;
	bool tunnel = false;

	ethertype = parse_ethernet(&c, &vlan);
	header = c.pos;
	if (ethertype == bpf_htons(ETH_P_IP))
		tunnel = parse_outer_ipv4(ctx, &c, &outer);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		tunnel = parse_outer_ipv6(ctx, &c, &outer);
	if (!tunnel)
		return DECAP_PASS_OTHER;

	if (unlikely(takes_gre || takes_udp) && !outer.fragment && !outer.malformed) {
		before = outer.length;
		if (!take_between(&c, &outer.protocol, &outer.length))
			return DECAP_PASS_OTHER;
		outer.malformed = outer.length > before;
	} else if (outer.protocol == IPPROTO_UDP) {
		/* Which port it is for the first fragment says, if it can be believed. */
		return DECAP_PASS_OTHER;
	}
	counters = bpf_map_lookup_elem(&addresses, &outer.key);
	if (!counters)
		return DECAP_PASS_OTHER;
	if (outer.fragment)
		return DECAP_PASS_FRAGMENT;
	if (outer.malformed)
		return DECAP_DROP_MALFORMED;
	return unwrap(ctx, &c, distance(frame, header), distance(header, c.pos), &outer, counters);
}

SEC("xdp")
int towpath_decap(struct xdp_md *ctx)
{
	__u64 verdict = decapsulate(ctx);
	__u32 zero = 0;
	struct decap_cpu *stats = bpf_map_lookup_elem(&verdicts, &zero);

	/* Headers may lie behind the first fragment of the frame. */
	if (xdp_fragments &&
	    unlikely(verdict == DECAP_PASS_OTHER || verdict == DECAP_DROP_MALFORMED) &&
	    frame_in_fragments(ctx) && pull(ctx, PULL_HEADERS))
		verdict = decapsulate(ctx);
	/* In one register, or Linux 5.10 knows the bounds of a copy only. */
	barrier_var(verdict);
	if (stats && verdict < DECAP_MAX)
		stats->packets[verdict]++;
	return verdict < DECAP_DROP_MALFORMED ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
