/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads a packet. Plain ones of TCP and UDP are read where they lie; all others by the helper that
 * reads any part of a packet, header by header, since not all of it need be in one piece.
 */
#ifndef TOWPATH_XLAT_PARSE_H
#define TOWPATH_XLAT_PARSE_H

#include "xlat/packet.h"
#include "snat/life.h"

enum xlat_wire {
	XLAT_SCTP = 132,
	XLAT_ICMP6 = 58,
	ICMP4_REPLY = 0,
	ICMP4_UNREACHABLE = 3,
	ICMP4_REQUEST = 8,
	ICMP4_EXCEEDED = 11,
	ICMP4_PARAMETER = 12,
	ICMP6_LAST_ERROR = 4,
	ICMP6_REQUEST = 128,
	ICMP6_REPLY = 129,
	ICMP_LENGTH = 8, /* of the header, in front of what is quoted */
	XLAT_HEADERS = 8,
};

struct xlat_icmp {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;
	__be16 sequence;
};

/* ---- IP headers ------------------------------------------------------------------- */

static __always_inline int xlat_read_ipv4(struct __sk_buff *skb, struct xlat_header *h)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return XLAT_MALFORMED;
	h->saddr = (struct address){ .word[3] = ip.saddr };
	h->daddr = (struct address){ .word[3] = ip.daddr };
	h->l4 = h->at + ip.ihl * 4;
	h->id_at = h->at + offsetof(struct iphdr, id);
	h->id = bpf_htonl(bpf_ntohs(ip.id));
	h->length = bpf_ntohs(ip.tot_len);
	h->offset = bpf_ntohs(ip.frag_off) & IPV4_OFFSET;
	h->fragment = !!(ip.frag_off & bpf_htons(IPV4_FRAGMENT));
	h->protocol = ip.protocol;
	h->ip_protocol = ip.protocol;
	h->family = FAMILY_V4;
	h->tos = ip.tos;
	h->ttl = ip.ttl;
	return XLAT_FINE;
}

/* Skips one extension header. True: there may be more of them. */
static __always_inline bool xlat_skip(struct __sk_buff *skb, struct xlat_header *h)
{
	struct ipv6_fragment head;
	struct ipv6_extension *ext = (struct ipv6_extension *)&head;

	if (h->protocol != IPPROTO_HOPOPTS && h->protocol != IPPROTO_DSTOPTS &&
	    h->protocol != IPPROTO_ROUTING && h->protocol != IPPROTO_FRAGMENT)
		return false;
	if (bpf_skb_load_bytes(skb, h->l4, &head, sizeof(head))) {
		h->protocol = IPPROTO_NONE;
		return false;
	}
	if (h->protocol != IPPROTO_FRAGMENT) {
		h->protocol = ext->nexthdr;
		h->l4 += (ext->length + 1) * 8;
		return true;
	}
	h->id_at = h->l4 + offsetof(struct ipv6_fragment, id);
	h->id = head.id;
	h->offset = bpf_ntohs(head.offset) >> 3;
	h->fragment = !!(head.offset & bpf_htons(IPV6_FRAGMENT));
	h->protocol = head.nexthdr;
	h->l4 += sizeof(head);
	return !h->offset;
}

__noinline int xlat_skip_of(struct __sk_buff *skb, __u32 quoted)
{
	struct xlat_packet *p = xlat_packet();

	if (!p)
		return false;
	return xlat_skip(skb, quoted ? &p->quoted : &p->ip);
}

static __always_inline int xlat_read_ipv6(struct __sk_buff *skb, struct xlat_header *h,
					  __u32 quoted)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)) || ip.version != 6)
		return XLAT_MALFORMED;
	__builtin_memcpy(&h->saddr, &ip.saddr, 16);
	__builtin_memcpy(&h->daddr, &ip.daddr, 16);
	h->l4 = h->at + sizeof(ip);
	h->length = ip.payload_len ? bpf_ntohs(ip.payload_len) + sizeof(ip) : 0;
	h->offset = 0;
	h->fragment = 0;
	h->protocol = ip.nexthdr;
	h->ip_protocol = 0;
	h->family = FAMILY_V6;
	h->tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	h->ttl = ip.hop_limit;
	for (int i = 0; i < XLAT_HEADERS; i++) {
		if (!xlat_skip_of(skb, quoted))
			break;
	}
	return XLAT_FINE;
}

/* Reads the IP header at p->ip.at, or that of a quoted packet at p->quoted.at. */
__noinline int xlat_read_ip(struct __sk_buff *skb, __u32 quoted)
{
	struct xlat_packet *p = xlat_packet();
	struct xlat_header *h;
	__u8 first;

	if (!p)
		return XLAT_MALFORMED;
	h = quoted ? &p->quoted : &p->ip;
	if (bpf_skb_load_bytes(skb, h->at, &first, 1))
		return XLAT_MALFORMED;
	if (first >> 4 == 4)
		return xlat_read_ipv4(skb, h);
	return xlat_read_ipv6(skb, h, quoted);
}

/* ---- What tells flows apart ------------------------------------------------------- */

static __always_inline bool xlat_is_icmp(const struct xlat_header *h)
{
	return h->protocol == (h->family == FAMILY_V4 ? IPPROTO_ICMP : XLAT_ICMP6);
}

static __always_inline bool xlat_is_error(__u8 type, __u8 family)
{
	if (family == FAMILY_V6)
		return type && type <= ICMP6_LAST_ERROR;
	return type == ICMP4_UNREACHABLE || type == ICMP4_EXCEEDED || type == ICMP4_PARAMETER;
}

/* Where an echo's identifier goes: it is the port of who has asked. `asks`: it is a request. */
static __always_inline void xlat_echo(struct flow_key *flow, __be16 id, bool asks)
{
	flow->sport = asks ? id : 0;
	flow->dport = asks ? 0 : id;
}

/*
 * Makes p->flow what an error is about, as a packet of who the error is from: the quoted one went
 * the other way. It must have been sent by who is told.
 */
__noinline int xlat_read_quoted(struct __sk_buff *skb)
{
	struct xlat_packet *p = xlat_packet();
	struct xlat_icmp head;
	struct xlat_header *q;

	if (!p)
		return XLAT_MALFORMED;
	q = &p->quoted;
	q->at = p->ip.l4 + ICMP_LENGTH;
	if (xlat_read_ip(skb, 1) != XLAT_FINE || q->offset || q->family != p->ip.family ||
	    !address_equal(&q->saddr, &p->ip.daddr) ||
	    bpf_skb_load_bytes(skb, q->l4, &head, sizeof(head)))
		return XLAT_MALFORMED;
	p->kind = XLAT_ERROR;
	p->flow.saddr = q->daddr;
	p->flow.daddr = q->saddr;
	p->flow.protocol = q->protocol;
	if (xlat_is_icmp(q)) {
		xlat_echo(&p->flow, head.id, head.type == ICMP4_REPLY || head.type == ICMP6_REPLY);
		return XLAT_FINE;
	}
	p->flow.sport = *(__be16 *)&head.check;
	p->flow.dport = *(__be16 *)&head;
	return q->protocol == IPPROTO_TCP || q->protocol == IPPROTO_UDP || q->protocol == XLAT_SCTP
		       ? XLAT_FINE
		       : XLAT_NO_PORTS;
}

/* `from_pod`: echo requests are asked by the source, replies were asked for by the destination. */
static __always_inline int xlat_read_icmp(struct __sk_buff *skb, struct xlat_packet *p,
					  bool from_pod)
{
	struct xlat_icmp head;
	bool asks, answers;

	if (bpf_skb_load_bytes(skb, p->ip.l4, &head, sizeof(head)))
		return XLAT_MALFORMED;
	if (xlat_is_error(head.type, p->ip.family))
		return p->ip.fragment ? XLAT_NO_PORTS : xlat_read_quoted(skb);
	asks = head.type == (p->ip.family == FAMILY_V4 ? ICMP4_REQUEST : ICMP6_REQUEST);
	answers = head.type == (p->ip.family == FAMILY_V4 ? ICMP4_REPLY : ICMP6_REPLY);
	if ((!asks && !answers) || head.code)
		return XLAT_NO_PORTS;
	p->kind = asks == from_pod ? XLAT_ECHO : XLAT_ECHO_ODD;
	xlat_echo(&p->flow, head.id, from_pod);
	return XLAT_FINE;
}

static __always_inline int xlat_read_ports(struct __sk_buff *skb, struct xlat_packet *p)
{
	struct ports ports;

	if (p->ip.protocol != IPPROTO_TCP && p->ip.protocol != IPPROTO_UDP &&
	    p->ip.protocol != XLAT_SCTP)
		return XLAT_NO_PORTS;
	if (bpf_skb_load_bytes(skb, p->ip.l4, &ports, sizeof(ports)))
		return XLAT_MALFORMED;
	p->flow.sport = ports.source;
	p->flow.dport = ports.dest;
	if (p->ip.protocol != IPPROTO_TCP)
		return p->ip.l4 + 8 <= p->ip.at + p->ip.length ? XLAT_FINE : XLAT_MALFORMED;
	/* A first fragment that ends before the checksum is nobody's (RFC 1858). */
	if (p->ip.l4 + TCP_CHECKSUM_AT + 2 > p->ip.at + p->ip.length ||
	    bpf_skb_load_bytes(skb, p->ip.l4 + TCP_FLAGS_AT, &p->flags, 1))
		return XLAT_MALFORMED;
	return XLAT_FINE;
}

/* ---- Fragments -------------------------------------------------------------------- */

static __always_inline void xlat_fragment_key(const struct xlat_packet *p,
					      struct xlat_fragment_key *key)
{
	key->saddr = p->ip.saddr;
	key->daddr = p->ip.daddr;
	key->id = p->ip.id;
	key->protocol = p->ip.ip_protocol;
	key->family = p->ip.family;
	key->_reserved = 0;
}

/* Gives a later fragment the ports of the first one. */
__noinline int xlat_find_fragment(void)
{
	struct xlat_packet *p = xlat_packet();
	struct xlat_fragment_key key;
	struct xlat_fragment *first;

	if (!p)
		return XLAT_NO_FIRST;
	xlat_fragment_key(p, &key);
	first = bpf_map_lookup_elem(&xlat_fragments, &key);
	if (!first || nat_age(p->now, first->seen) > nat_udp_new)
		return XLAT_NO_FIRST;
	p->flow.sport = first->sport;
	p->flow.dport = first->dport;
	p->flow.protocol = first->protocol;
	return XLAT_FINE;
}

/* Leaves the first fragment's ports for those that follow. */
__noinline int xlat_learn_fragment(void)
{
	struct xlat_packet *p = xlat_packet();
	struct xlat_fragment_key key;
	struct xlat_fragment first = {};

	if (!p || !p->ip.fragment || p->ip.offset)
		return 0;
	xlat_fragment_key(p, &key);
	first.sport = p->flow.sport;
	first.dport = p->flow.dport;
	first.protocol = p->flow.protocol;
	first.seen = p->now;
	bpf_map_update_elem(&xlat_fragments, &key, &first, BPF_ANY);
	return 0;
}

/* ---- The packet ------------------------------------------------------------------- */

static __always_inline int xlat_read_transport(struct __sk_buff *skb, struct xlat_packet *p,
					       bool from_pod)
{
	__u32 there = skb->len - p->ip.at;

	/* What several segments are still to be made of may be longer than its header can say. */
	if (!p->ip.length || skb->gso_segs > 1)
		p->ip.length = there;
	if (p->ip.length > there)
		return XLAT_MALFORMED;
	if (p->ip.offset)
		return xlat_find_fragment();
	if (xlat_is_icmp(&p->ip))
		return xlat_read_icmp(skb, p, from_pod);
	return xlat_read_ports(skb, p);
}

/* Reads any packet. What is wrong with it is in p->problem. False: it isn't IP. */
__noinline int xlat_read(struct __sk_buff *skb, __u32 from_pod)
{
	struct xlat_packet *p = xlat_packet();

	if (!p)
		return false;
	p->ip.at = p->l3;
	if (xlat_read_ip(skb, 0) != XLAT_FINE)
		return false;
	p->flow = (struct flow_key){
		.saddr = p->ip.saddr,
		.daddr = p->ip.daddr,
		.protocol = p->ip.protocol,
		.family = p->ip.family,
	};
	p->problem = xlat_read_transport(skb, p, from_pod);
	p->length = p->ip.length;
	return true;
}

/* Fills what a plain packet's IP header says. */
static __always_inline void xlat_plain(struct xlat_packet *p, __u32 l3, __u32 header, __u8 family,
				       __u8 tos, __u8 ttl, __u8 protocol)
{
	p->ip.at = l3;
	p->ip.l4 = l3 + header;
	p->ip.offset = 0;
	p->ip.fragment = 0;
	p->ip.protocol = protocol;
	p->ip.family = family;
	p->ip.tos = tos;
	p->ip.ttl = ttl;
	p->flow.protocol = protocol;
	p->flow.family = family;
	p->flow._reserved = 0;
}

/* The ports of a plain packet. False: it isn't one. */
static __always_inline bool xlat_plain_ports(struct xlat_packet *p, void *l4, void *end)
{
	struct tcphdr *tcp = l4;

	if (l4 + sizeof(struct udphdr) > end)
		return false;
	p->flow.sport = tcp->source;
	p->flow.dport = tcp->dest;
	if (p->ip.protocol == IPPROTO_UDP)
		return true;
	if (p->ip.protocol != IPPROTO_TCP || l4 + sizeof(*tcp) > end)
		return false;
	p->flags = ((__u8 *)tcp)[TCP_FLAGS_AT];
	return true;
}

static __always_inline bool xlat_read_plain4(struct xlat_packet *p, void *data, void *end,
					     const __u32 l3, __u32 there)
{
	struct iphdr *ip = data + l3;

	if ((void *)(ip + 1) > end || *(__u8 *)ip != 0x45 ||
	    ip->frag_off & bpf_htons(IPV4_FRAGMENT))
		return false;
	p->flow.saddr = (struct address){ .word[3] = ip->saddr };
	p->flow.daddr = (struct address){ .word[3] = ip->daddr };
	xlat_plain(p, l3, sizeof(*ip), FAMILY_V4, ip->tos, ip->ttl, ip->protocol);
	p->length = bpf_ntohs(ip->tot_len);
	return p->length >= sizeof(*ip) + sizeof(struct udphdr) && p->length <= there &&
	       xlat_plain_ports(p, ip + 1, end);
}

static __always_inline bool xlat_read_plain6(struct xlat_packet *p, void *data, void *end,
					     const __u32 l3, __u32 there)
{
	struct ipv6hdr *ip = data + l3;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	__builtin_memcpy(&p->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(&p->flow.daddr, &ip->daddr, 16);
	xlat_plain(p, l3, sizeof(*ip), FAMILY_V6, ip->priority << 4 | ip->flow_lbl[0] >> 4,
		   ip->hop_limit, ip->nexthdr);
	p->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	return p->length >= sizeof(*ip) + sizeof(struct udphdr) && p->length <= there &&
	       xlat_plain_ports(p, ip + 1, end);
}

/* Reads a packet into p, whatever it is. False: it isn't IP. */
static __always_inline bool xlat_parse(struct __sk_buff *skb, struct xlat_packet *p, const __u32 l3,
				       const bool from_pod)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 there = skb->len - l3;
	bool plain = false;

	p->kind = XLAT_PLAIN;
	p->problem = XLAT_FINE;
	p->flags = 0;
	p->l3 = l3;
	p->jiffies = bpf_jiffies64();
	p->now = p->jiffies >> NAT_SEEN_SHIFT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		plain = xlat_read_plain4(p, data, end, l3, there);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		plain = xlat_read_plain6(p, data, end, l3, there);
	else
		return false;
	p->plain = plain;
	if (unlikely(!plain) && !xlat_read(skb, from_pod))
		return false;
	/* A segment's, of those that are still to be made. Its headers are no longer than this one. */
	if (skb->gso_size)
		p->length =
			skb->gso_size + p->ip.l4 - l3 + (p->ip.protocol == IPPROTO_TCP ? 20 : 8);
	return true;
}

#endif
