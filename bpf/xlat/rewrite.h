/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes another address and port into a packet. Checksums are followed by the kernel's helpers,
 * which know what of them is still to be done: by a device, or for segments that are yet to be made.
 * Nothing in front of the first helper that may fail is written.
 */
#ifndef TOWPATH_XLAT_REWRITE_H
#define TOWPATH_XLAT_REWRITE_H

#include "xlat/parse.h"
#include "net/identification.h"

enum xlat_checksum {
	XLAT_F_IPV6 = 1 << 7, /* BPF_F_IPV6, since 6.16 */
	XLAT_BAD_FLAGS = -22,
	UDP_CHECKSUM_AT = 6,
	ICMP_CHECKSUM_AT = 2,
	ICMP_ID_AT = 4,
	XLAT_PULL = 60, /* from the IP header on: what has to be in one piece to be written */
};

static __always_inline __u32 xlat_fold(__u64 difference)
{
	difference = (difference & 0xffffffff) + (difference >> 32);
	return difference + (difference >> 32);
}

static __always_inline __u64 xlat_difference(const struct address *from, const struct address *to)
{
	return difference32(from->word[0], to->word[0]) + difference32(from->word[1], to->word[1]) +
	       difference32(from->word[2], to->word[2]) + difference32(from->word[3], to->word[3]);
}

/*
 * Follows a change of addresses. Before BPF_F_IPV6 the helper takes an IPv6 header to have a checksum
 * of its own, and a sum over the whole packet, which a device has made, to change: that is undone.
 */
static __always_inline int xlat_follow_addresses(struct __sk_buff *skb, __u32 at, __u32 difference,
						 __u32 flags, bool v6)
{
	int result;

	flags |= BPF_F_PSEUDO_HDR;
	if (!v6)
		return bpf_l4_csum_replace(skb, at, 0, difference, flags);
	result = bpf_l4_csum_replace(skb, at, 0, difference, flags | XLAT_F_IPV6);
	if (result != XLAT_BAD_FLAGS)
		return result;
	result = bpf_l4_csum_replace(skb, at, 0, difference, flags);
	if (!result)
		bpf_csum_update(skb, difference);
	return result;
}

/* Where a transport has its checksum; 0: none that covers what is written. */
static __always_inline __u32 xlat_checksum_at(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return TCP_CHECKSUM_AT;
	case IPPROTO_UDP:
		return UDP_CHECKSUM_AT;
	case IPPROTO_ICMP:
	case XLAT_ICMP6:
		return ICMP_CHECKSUM_AT;
	default:
		return 0;
	}
}

static __always_inline bool xlat_has_pseudo(__u8 protocol)
{
	return protocol != IPPROTO_ICMP;
}

/* The transport of a packet that is no ICMP error. `difference`: of the addresses. */
static __always_inline int xlat_write_transport(struct __sk_buff *skb, const struct xlat_packet *p,
						const bool out, __u32 difference)
{
	__u8 protocol = p->flow.protocol;
	__u32 check = xlat_checksum_at(protocol), port_at = out ? 0 : sizeof(__be16);
	__u32 flags = protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 before = out ? p->flow.sport : p->flow.dport, after = p->to_port;

	if (protocol == IPPROTO_ICMP || protocol == XLAT_ICMP6)
		port_at = ICMP_ID_AT;
	if (check && xlat_has_pseudo(protocol) &&
	    xlat_follow_addresses(skb, p->ip.l4 + check, difference, flags,
				  p->ip.family == FAMILY_V6))
		return -1;
	if (before == after)
		return 0;
	if (check &&
	    bpf_l4_csum_replace(skb, p->ip.l4 + check, before, after, flags | sizeof(before)))
		return -1;
	if (p->plain) /* xlat_write_port() does it */
		return 0;
	return bpf_skb_store_bytes(skb, p->ip.l4 + port_at, &after, sizeof(after), 0);
}

/* ---- Errors ----------------------------------------------------------------------- */

/* Stores 16 bits in a quote, and adds the change to what ICMP's checksum covers. */
static __always_inline int xlat_store16(struct __sk_buff *skb, __u32 at, __u16 before, __u16 after,
					__u64 *all)
{
	*all += difference16(before, after);
	return bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0);
}

/* A quoted fragment gets the identification back that it had come to us with. */
static __always_inline int xlat_quoted_id(struct __sk_buff *skb, const struct xlat_packet *p,
					  __u64 *header, __u64 *all)
{
	const struct xlat_header *q = &p->quoted;
	__u32 mask, id;
	__u16 before, after;

	if (!q->fragment)
		return 0;
	mask = identification_mask(&p->to, &q->daddr, q->family, q->ip_protocol, xlat_seed());
	if (q->family == FAMILY_V6) {
		id = q->id ^ bpf_htonl(mask);
		*all += difference32(q->id, id);
		return bpf_skb_store_bytes(skb, q->id_at, &id, sizeof(id), 0);
	}
	before = bpf_htons(bpf_ntohl(q->id));
	after = before ^ bpf_htons((__u16)mask);
	*header += difference16(before, after);
	return xlat_store16(skb, q->id_at, before, after, all);
}

/* The quoted IP header: our address in it becomes what the other side knows. */
static __always_inline int xlat_quoted_header(struct __sk_buff *skb, const struct xlat_packet *p,
					      const bool out, bool ids, __u64 difference,
					      __u64 *all)
{
	const struct xlat_header *q = &p->quoted;
	__u64 header = difference;
	__u16 check;

	*all += difference;
	if (!out && ids && xlat_quoted_id(skb, p, &header, all))
		return -1;
	if (q->family == FAMILY_V6)
		return bpf_skb_store_bytes(skb, q->at + (out ? 24 : 8), &p->to, 16, 0);
	if (bpf_skb_load_bytes(skb, q->at + 10, &check, sizeof(check)) ||
	    xlat_store16(skb, q->at + 10, check, checksum_after(check, header), all))
		return -1;
	return bpf_skb_store_bytes(skb, q->at + (out ? 16 : 12), &p->to.word[3], 4, 0);
}

/* The quoted port, and the checksum if the quote is long enough to have it. */
static __always_inline int xlat_quoted_transport(struct __sk_buff *skb, const struct xlat_packet *p,
						 const bool out, __u64 difference, __u64 *all)
{
	const struct xlat_header *q = &p->quoted;
	__be16 before = out ? p->flow.sport : p->flow.dport, after = p->to_port;
	__u32 at = q->l4 + (out ? sizeof(__be16) : 0), check_at = xlat_checksum_at(q->protocol);
	__u64 change = difference16(before, after);
	__u16 check;

	if (q->protocol == IPPROTO_ICMP || q->protocol == XLAT_ICMP6)
		at = q->l4 + ICMP_ID_AT;
	if (xlat_store16(skb, at, before, after, all))
		return -1;
	if (xlat_has_pseudo(q->protocol))
		change += difference;
	if (!check_at || q->l4 + check_at + sizeof(check) > p->ip.at + p->ip.length)
		return 0;
	if (bpf_skb_load_bytes(skb, q->l4 + check_at, &check, sizeof(check)))
		return -1;
	return xlat_store16(skb, q->l4 + check_at, check,
			    q->protocol == IPPROTO_UDP ? udp_checksum_after(check, change)
						       : checksum_after(check, change),
			    all);
}

/* `difference`: of the error's own addresses. */
static __always_inline int xlat_write_error(struct __sk_buff *skb, const struct xlat_packet *p,
					    const bool out, bool ids, __u32 difference)
{
	const struct xlat_header *q = &p->quoted;
	__u64 quoted = xlat_difference(out ? &q->daddr : &q->saddr, &p->to), all = 0;
	__u32 check = p->ip.l4 + ICMP_CHECKSUM_AT;

	if (xlat_quoted_header(skb, p, out, ids, quoted, &all) ||
	    xlat_quoted_transport(skb, p, out, quoted, &all))
		return -1;
	if (p->ip.family == FAMILY_V6 && xlat_follow_addresses(skb, check, difference, 0, true))
		return -1;
	return bpf_l4_csum_replace(skb, check, 0, xlat_fold(all), 0);
}

/* ---- Headers ---------------------------------------------------------------------- */

/* What is written into a packet's own headers, beside the address. */
struct xlat_change {
	__u32 hops;  /* one less, or none */
	bool ids;    /* fragments get identifications of the new source: net/identification.h */
	bool keep;   /* of an error: it is another's than the quoted one's, whose address stays */
	__u32 frame; /* it is put into a frame with ... */
	const __u8 *macs; /* ... these addresses, of its receiver and sender */
	__u32 mask;	  /* of the identification; 0: it stays */
};

static __always_inline void xlat_write_ipv4(struct iphdr *ip, const struct address *to,
					    const bool out, const struct xlat_change *c)
{
	__be32 *at = out ? &ip->saddr : &ip->daddr;
	__u16 *hops = (__u16 *)&ip->ttl, before = *hops;
	__u64 difference = difference32(*at, to->word[3]);

	ip->ttl -= c->hops;
	difference += difference16(before, *hops);
	if (c->mask)
		difference += difference16(ip->id, ip->id ^ bpf_htons((__u16)c->mask));
	ip->id ^= bpf_htons((__u16)c->mask);
	ip->check = checksum_after(ip->check, difference);
	*at = to->word[3];
}

/* The port of a plain packet, whose transport is behind a header of the usual length. */
static __always_inline int xlat_write_port(const struct xlat_packet *p, void *l4, void *end,
					   const bool out)
{
	__be16 *port = out ? l4 : l4 + sizeof(*port);

	if (!p->plain)
		return 0;
	if ((void *)(port + 1) > end)
		return -1;
	*port = p->to_port;
	return 0;
}

static __always_inline int xlat_write_head(struct __sk_buff *skb, const struct xlat_packet *p,
					   const __u32 l3, const bool out,
					   const struct xlat_change *c)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if (l3 && c->frame) {
		if ((void *)(eth + 1) > end)
			return -1;
		__builtin_memcpy(eth->h_dest, c->macs, ETH_ALEN);
		__builtin_memcpy(eth->h_source, c->macs + ETH_ALEN, ETH_ALEN);
	}
	if (c->keep)
		return 0;
	if (p->ip.family == FAMILY_V4) {
		struct iphdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return -1;
		xlat_write_ipv4(ip, &p->to, out, c);
		return xlat_write_port(p, ip + 1, end, out);
	} else {
		struct ipv6hdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return -1;
		__builtin_memcpy(out ? &ip->saddr : &ip->daddr, &p->to, 16);
		ip->hop_limit -= c->hops;
		return xlat_write_port(p, ip + 1, end, out);
	}
}

/* How the sum changes with the address that is replaced. False: that can't be read. */
static __always_inline bool xlat_old_difference(struct __sk_buff *skb, const struct xlat_packet *p,
						const bool out, __u32 *difference)
{
	const struct address *plain = out ? &p->flow.saddr : &p->flow.daddr;
	struct address before = {};

	if (likely(p->kind == XLAT_PLAIN && p->ip.family == FAMILY_V4)) {
		*difference = xlat_fold(difference32(plain->word[3], p->to.word[3]));
		return true;
	}
	if (p->kind == XLAT_PLAIN) {
		before = *plain;
	} else if (p->ip.family == FAMILY_V4) {
		if (bpf_skb_load_bytes(skb, p->l3 + (out ? 12 : 16), &before.word[3], 4))
			return false;
	} else if (bpf_skb_load_bytes(skb, p->l3 + (out ? 8 : 24), &before, 16)) {
		return false;
	}
	*difference = xlat_fold(xlat_difference(&before, &p->to));
	return true;
}

/* A later fragment of IPv6 has nothing that makes up for the change of its addresses. */
static __always_inline int xlat_write_body(struct __sk_buff *skb, const struct xlat_packet *p,
					   const bool out, bool ids, __u32 difference)
{
	if (p->ip.offset) {
		if (p->ip.family == FAMILY_V6)
			bpf_csum_update(skb, difference);
		return 0;
	}
	if (p->kind == XLAT_ERROR)
		return xlat_write_error(skb, p, out, ids, difference);
	return xlat_write_transport(skb, p, out, difference);
}

static __always_inline int xlat_write_id6(struct __sk_buff *skb, const struct xlat_packet *p,
					  __u32 mask)
{
	__be32 id = p->ip.id ^ bpf_htonl(mask);

	return bpf_skb_store_bytes(skb, p->ip.id_at, &id, sizeof(id), 0);
}

/* Of a pod's fragment: see net/identification.h. 0: it stays. */
static __always_inline __u32 xlat_id_mask(const struct xlat_packet *p, const bool out)
{
	if (!out || !p->ip.fragment)
		return 0;
	return identification_mask(&p->ip.saddr, &p->ip.daddr, p->ip.family, p->ip.ip_protocol,
				   xlat_seed());
}

/*
 * Writes p->to and p->to_port: as the packet's source (`out`), or as its destination. 0: it is done.
 */
static __always_inline int xlat_write(struct __sk_buff *skb, const struct xlat_packet *p,
				      const bool out, struct xlat_change change)
{
	__u32 difference, pull;

	if (p->ip.fragment || p->kind != XLAT_PLAIN || skb->len > skb->data_end - skb->data) {
		pull = p->l3 + XLAT_PULL;
		bpf_skb_pull_data(skb, pull < skb->len ? pull : skb->len);
	}
	if (!xlat_old_difference(skb, p, out, &difference))
		return -1;
	if (change.keep)
		difference = 0;
	if (xlat_write_body(skb, p, out, change.ids, difference))
		return -1;
	change.mask = change.ids ? xlat_id_mask(p, out) : 0;
	if (change.mask && p->ip.family == FAMILY_V6) {
		if (xlat_write_id6(skb, p, change.mask))
			return -1;
		change.mask = 0;
	}
	if (p->l3)
		return xlat_write_head(skb, p, sizeof(struct ethhdr), out, &change);
	return xlat_write_head(skb, p, 0, out, &change);
}

#endif
