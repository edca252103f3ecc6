/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads a packet. Plain ones of TCP and UDP are read where they lie; all others by the helper that
 * reads any part of a packet, header by header, since not all of it need be in one piece.
 */
#ifndef TOWPATH_MASQUERADE_PARSE_H
#define TOWPATH_MASQUERADE_PARSE_H

#include "masquerade/maps.h"
#include "snat/life.h"

enum masq_wire {
	MASQ_SCTP = 132,
	MASQ_ICMP6 = 58,
	ICMP4_REPLY = 0,
	ICMP4_UNREACHABLE = 3,
	ICMP4_REQUEST = 8,
	ICMP4_EXCEEDED = 11,
	ICMP4_PARAMETER = 12,
	ICMP6_LAST_ERROR = 4,
	ICMP6_REQUEST = 128,
	ICMP6_REPLY = 129,
	ICMP_LENGTH = 8, /* of the header, in front of what is quoted */
	MASQ_HEADERS = 8,
};

struct masq_icmp {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;
	__be16 sequence;
};

/* ---- IP headers ------------------------------------------------------------------- */

static __always_inline int masq_read_ipv4(struct __sk_buff *skb, struct masq_header *h)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return MASQ_DROP_MALFORMED;
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
	return MASQ_FINE;
}

/* Skips one extension header. True: there may be more of them. */
static __always_inline bool masq_skip(struct __sk_buff *skb, struct masq_header *h)
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

__noinline int masq_skip_of(struct __sk_buff *skb, __u32 quoted)
{
	struct masq_work *w = masq_work();

	if (!w)
		return false;
	return masq_skip(skb, quoted ? &w->quoted : &w->ip);
}

static __always_inline int masq_read_ipv6(struct __sk_buff *skb, struct masq_header *h,
					  __u32 quoted)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)) || ip.version != 6)
		return MASQ_DROP_MALFORMED;
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
	for (int i = 0; i < MASQ_HEADERS; i++) {
		if (!masq_skip_of(skb, quoted))
			break;
	}
	return MASQ_FINE;
}

/* Reads the IP header at w->ip.at, or that of a quoted packet at w->quoted.at. */
__noinline int masq_read_ip(struct __sk_buff *skb, __u32 quoted)
{
	struct masq_work *w = masq_work();
	struct masq_header *h;
	__u8 first;

	if (!w)
		return MASQ_DROP_MALFORMED;
	h = quoted ? &w->quoted : &w->ip;
	if (bpf_skb_load_bytes(skb, h->at, &first, 1))
		return MASQ_DROP_MALFORMED;
	if (first >> 4 == 4)
		return masq_read_ipv4(skb, h);
	return masq_read_ipv6(skb, h, quoted);
}

/* ---- What tells flows apart ------------------------------------------------------- */

static __always_inline bool masq_is_icmp(const struct masq_header *h)
{
	return h->protocol == (h->family == FAMILY_V4 ? IPPROTO_ICMP : MASQ_ICMP6);
}

static __always_inline bool masq_is_error(__u8 type, __u8 family)
{
	if (family == FAMILY_V6)
		return type && type <= ICMP6_LAST_ERROR;
	return type == ICMP4_UNREACHABLE || type == ICMP4_EXCEEDED || type == ICMP4_PARAMETER;
}

/* Where an echo's identifier goes: it is the port of who has asked. `asks`: it is a request. */
static __always_inline void masq_echo(struct flow_key *flow, __be16 id, bool asks)
{
	flow->sport = asks ? id : 0;
	flow->dport = asks ? 0 : id;
}

/*
 * Makes w->flow what an error is about, as a packet of who the error is from: the quoted one went
 * the other way. It must have been sent by who is told.
 */
__noinline int masq_read_quoted(struct __sk_buff *skb)
{
	struct masq_work *w = masq_work();
	struct masq_icmp head;
	struct masq_header *q;

	if (!w)
		return MASQ_DROP_MALFORMED;
	q = &w->quoted;
	q->at = w->ip.l4 + ICMP_LENGTH;
	if (masq_read_ip(skb, 1) != MASQ_FINE || q->offset || q->family != w->ip.family ||
	    !address_equal(&q->saddr, &w->ip.daddr) ||
	    bpf_skb_load_bytes(skb, q->l4, &head, sizeof(head)))
		return MASQ_DROP_MALFORMED;
	w->kind = MASQ_ERROR;
	w->flow.saddr = q->daddr;
	w->flow.daddr = q->saddr;
	w->flow.protocol = q->protocol;
	if (masq_is_icmp(q)) {
		masq_echo(&w->flow, head.id, head.type == ICMP4_REPLY || head.type == ICMP6_REPLY);
		return MASQ_FINE;
	}
	w->flow.sport = *(__be16 *)&head.check;
	w->flow.dport = *(__be16 *)&head;
	return q->protocol == IPPROTO_TCP || q->protocol == IPPROTO_UDP || q->protocol == MASQ_SCTP
		       ? MASQ_FINE
		       : MASQ_DROP_PROTOCOL;
}

/* `from_pod`: echo requests are asked by the source, replies were asked for by the destination. */
static __always_inline int masq_read_icmp(struct __sk_buff *skb, struct masq_work *w, bool from_pod)
{
	struct masq_icmp head;
	bool asks, answers;

	if (bpf_skb_load_bytes(skb, w->ip.l4, &head, sizeof(head)))
		return MASQ_DROP_MALFORMED;
	if (masq_is_error(head.type, w->ip.family))
		return w->ip.fragment ? MASQ_DROP_PROTOCOL : masq_read_quoted(skb);
	asks = head.type == (w->ip.family == FAMILY_V4 ? ICMP4_REQUEST : ICMP6_REQUEST);
	answers = head.type == (w->ip.family == FAMILY_V4 ? ICMP4_REPLY : ICMP6_REPLY);
	if ((!asks && !answers) || head.code)
		return MASQ_DROP_PROTOCOL;
	w->kind = asks == from_pod ? MASQ_ECHO : MASQ_ECHO_ODD;
	masq_echo(&w->flow, head.id, from_pod);
	return MASQ_FINE;
}

static __always_inline int masq_read_ports(struct __sk_buff *skb, struct masq_work *w)
{
	struct ports ports;

	if (w->ip.protocol != IPPROTO_TCP && w->ip.protocol != IPPROTO_UDP &&
	    w->ip.protocol != MASQ_SCTP)
		return MASQ_DROP_PROTOCOL;
	if (bpf_skb_load_bytes(skb, w->ip.l4, &ports, sizeof(ports)))
		return MASQ_DROP_MALFORMED;
	w->flow.sport = ports.source;
	w->flow.dport = ports.dest;
	if (w->ip.protocol != IPPROTO_TCP)
		return w->ip.l4 + 8 <= w->ip.at + w->ip.length ? MASQ_FINE : MASQ_DROP_MALFORMED;
	/* A first fragment that ends before the checksum is nobody's (RFC 1858). */
	if (w->ip.l4 + TCP_CHECKSUM_AT + 2 > w->ip.at + w->ip.length ||
	    bpf_skb_load_bytes(skb, w->ip.l4 + TCP_FLAGS_AT, &w->flags, 1))
		return MASQ_DROP_MALFORMED;
	return MASQ_FINE;
}

/* ---- Fragments -------------------------------------------------------------------- */

static __always_inline void masq_fragment_key(const struct masq_work *w,
					      struct masquerade_fragment_key *key)
{
	key->saddr = w->ip.saddr;
	key->daddr = w->ip.daddr;
	key->id = w->ip.id;
	key->protocol = w->ip.ip_protocol;
	key->family = w->ip.family;
	key->_reserved = 0;
}

/* Gives a later fragment the ports of the first one. */
__noinline int masq_find_fragment(void)
{
	struct masq_work *w = masq_work();
	struct masquerade_fragment_key key;
	struct masquerade_fragment *first;

	if (!w)
		return MASQ_DROP_FRAGMENT;
	masq_fragment_key(w, &key);
	first = bpf_map_lookup_elem(&masq_fragments, &key);
	if (!first || nat_age(w->search.now, first->seen) > nat_udp_new)
		return MASQ_DROP_FRAGMENT;
	w->flow.sport = first->sport;
	w->flow.dport = first->dport;
	w->flow.protocol = first->protocol;
	return MASQ_FINE;
}

/* Leaves the first fragment's ports for those that follow. */
__noinline int masq_learn_fragment(void)
{
	struct masq_work *w = masq_work();
	struct masquerade_fragment_key key;
	struct masquerade_fragment first = {};

	if (!w || !w->ip.fragment || w->ip.offset)
		return 0;
	masq_fragment_key(w, &key);
	first.sport = w->flow.sport;
	first.dport = w->flow.dport;
	first.protocol = w->flow.protocol;
	first.seen = w->search.now;
	bpf_map_update_elem(&masq_fragments, &key, &first, BPF_ANY);
	return 0;
}

/* ---- The packet ------------------------------------------------------------------- */

static __always_inline int masq_read_transport(struct __sk_buff *skb, struct masq_work *w,
					       bool from_pod)
{
	__u32 there = skb->len - w->ip.at;

	/* What several segments are still to be made of may be longer than its header can say. */
	if (!w->ip.length || skb->gso_segs > 1)
		w->ip.length = there;
	if (w->ip.length > there)
		return MASQ_DROP_MALFORMED;
	if (w->ip.offset)
		return masq_find_fragment();
	if (masq_is_icmp(&w->ip))
		return masq_read_icmp(skb, w, from_pod);
	return masq_read_ports(skb, w);
}

/* Reads any packet. What is wrong with it is in w->problem. False: it isn't IP. */
__noinline int masq_read(struct __sk_buff *skb, __u32 from_pod)
{
	struct masq_work *w = masq_work();

	if (!w)
		return false;
	w->ip.at = w->l3;
	if (masq_read_ip(skb, 0) != MASQ_FINE)
		return false;
	w->flow = (struct flow_key){
		.saddr = w->ip.saddr,
		.daddr = w->ip.daddr,
		.protocol = w->ip.protocol,
		.family = w->ip.family,
	};
	w->problem = masq_read_transport(skb, w, from_pod);
	w->length = w->ip.length;
	return true;
}

/* Fills what a plain packet's IP header says. */
static __always_inline void masq_plain(struct masq_work *w, __u32 l3, __u32 header, __u8 family,
				       __u8 tos, __u8 ttl, __u8 protocol)
{
	w->ip.at = l3;
	w->ip.l4 = l3 + header;
	w->ip.offset = 0;
	w->ip.fragment = 0;
	w->ip.protocol = protocol;
	w->ip.family = family;
	w->ip.tos = tos;
	w->ip.ttl = ttl;
	w->flow.protocol = protocol;
	w->flow.family = family;
	w->flow._reserved = 0;
}

/* The ports of a plain packet. False: it isn't one. */
static __always_inline bool masq_plain_ports(struct masq_work *w, void *l4, void *end)
{
	struct tcphdr *tcp = l4;

	if (l4 + sizeof(struct udphdr) > end)
		return false;
	w->flow.sport = tcp->source;
	w->flow.dport = tcp->dest;
	if (w->ip.protocol == IPPROTO_UDP)
		return true;
	if (w->ip.protocol != IPPROTO_TCP || l4 + sizeof(*tcp) > end)
		return false;
	w->flags = ((__u8 *)tcp)[TCP_FLAGS_AT];
	return true;
}

static __always_inline bool masq_read_plain4(struct masq_work *w, void *data, void *end,
					     const __u32 l3, __u32 there)
{
	struct iphdr *ip = data + l3;

	if ((void *)(ip + 1) > end || *(__u8 *)ip != 0x45 ||
	    ip->frag_off & bpf_htons(IPV4_FRAGMENT))
		return false;
	w->flow.saddr = (struct address){ .word[3] = ip->saddr };
	w->flow.daddr = (struct address){ .word[3] = ip->daddr };
	masq_plain(w, l3, sizeof(*ip), FAMILY_V4, ip->tos, ip->ttl, ip->protocol);
	w->length = bpf_ntohs(ip->tot_len);
	return w->length >= sizeof(*ip) + sizeof(struct udphdr) && w->length <= there &&
	       masq_plain_ports(w, ip + 1, end);
}

static __always_inline bool masq_read_plain6(struct masq_work *w, void *data, void *end,
					     const __u32 l3, __u32 there)
{
	struct ipv6hdr *ip = data + l3;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	__builtin_memcpy(&w->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(&w->flow.daddr, &ip->daddr, 16);
	masq_plain(w, l3, sizeof(*ip), FAMILY_V6, ip->priority << 4 | ip->flow_lbl[0] >> 4,
		   ip->hop_limit, ip->nexthdr);
	w->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	return w->length >= sizeof(*ip) + sizeof(struct udphdr) && w->length <= there &&
	       masq_plain_ports(w, ip + 1, end);
}

/* Reads a packet into w, whatever it is. False: it isn't IP. */
static __always_inline bool masq_parse(struct __sk_buff *skb, struct masq_work *w, const __u32 l3,
				       const bool from_pod)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 there = skb->len - l3;
	bool plain = false;

	w->kind = MASQ_PLAIN;
	w->problem = MASQ_FINE;
	w->flags = 0;
	w->known = 0;
	w->l3 = l3;
	w->jiffies = bpf_jiffies64();
	w->search.now = w->jiffies >> NAT_SEEN_SHIFT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		plain = masq_read_plain4(w, data, end, l3, there);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		plain = masq_read_plain6(w, data, end, l3, there);
	else
		return false;
	w->plain = plain;
	if (unlikely(!plain) && !masq_read(skb, from_pod))
		return false;
	/* A segment's, of those that are still to be made. Its headers are no longer than this one. */
	if (skb->gso_size)
		w->length =
			skb->gso_size + w->ip.l4 - l3 + (w->ip.protocol == IPPROTO_TCP ? 20 : 8);
	return true;
}

#endif
