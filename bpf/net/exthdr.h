/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the headers of packets that parse_packet() has put aside, one at a time: fragments,
 * ICMP, and the packets that ICMP errors quote. This is no hot path.
 *
 * Where it has come to in the frame is in a struct that is kept in a map between steps, so that
 * the verifier takes it for any number and each step can be a global function of the program's,
 * which is looked at once, whatever came before it.
 */
#ifndef TOWPATH_NET_EXTHDR_H
#define TOWPATH_NET_EXTHDR_H

#include "net/parse.h"

enum hdr_result {
	HDR_MORE = -2, /* else an enum parse_result */
};

enum hdr_limits {
	HDR_REACH = 0xfff, /* headers further into the frame are not read */
};

/* Where a packet's headers are being read, and what the last IP header said. */
struct hdr_state {
	struct flow_key flow; /* without ports */
	__u32 at;	      /* bytes into the frame */
	__u32 id_at;	      /* of a fragment, bytes into the frame: where its ... */
	__be32 id;	      /* ... identification is */
	__u16 offset;	      /* of a fragment, in 8 bytes */
	bool fragment;
	bool authenticated; /* an authentication header has been walked past */
	__u8 ip_protocol;   /* as the IPv4 header has it */
	__u8 nexthdr;	    /* what is at `at` */
	__u16 _reserved;
};

/* Moves a cursor from the frame's start to the header that is next. False: that is too far. */
static __always_inline bool hdr_cursor(const struct hdr_state *hdr, struct cursor *c)
{
	__u64 at = hdr->at;

	if (at > HDR_REACH)
		return false;
	c->pos += at;
	return true;
}

/* Whether the packet goes on for so many bytes from here on; padding isn't the packet's. */
static __always_inline bool hdr_within(const struct hdr_state *hdr, const struct packet *pkt,
				       __u32 bytes)
{
	return hdr->at + bytes <= pkt->l3_offset + pkt->l3_length;
}

static __always_inline int hdr_skip_fragment(struct hdr_state *hdr, struct cursor *c)
{
	struct ipv6_fragment *frag = cursor_take(c, struct ipv6_fragment);

	if (!frag)
		return PARSE_MALFORMED;
	hdr->nexthdr = frag->nexthdr;
	hdr->id_at = hdr->at + offsetof(struct ipv6_fragment, id);
	hdr->at += sizeof(*frag);
	if (!(frag->offset & bpf_htons(IPV6_FRAGMENT)))
		return HDR_MORE;
	hdr->id = frag->id;
	hdr->offset = bpf_ntohs(frag->offset) >> 3;
	hdr->fragment = true;
	return PARSE_FRAGMENT;
}

/* RFC 4302: of either family. Its length is in units of 4 bytes, of which two are not counted. */
static __always_inline int hdr_skip_authentication(struct hdr_state *hdr, struct cursor *c)
{
	struct ip_auth_hdr *header = cursor_take(c, struct ip_auth_hdr);

	if (!header || !header->hdrlen)
		return PARSE_MALFORMED;
	hdr->nexthdr = header->nexthdr;
	hdr->at += (header->hdrlen + 2) * 4;
	hdr->authenticated = true;
	return HDR_MORE;
}

/*
 * Skips one extension header as parse_ipv6_extensions() does, or an authentication header:
 * HDR_MORE, or PARSE_OK if there is none. A fragment header ends the walk, behind it, with
 * PARSE_FRAGMENT, unless it is that of a whole packet. `c`: at the frame's start.
 */
static __always_inline int hdr_skip(struct hdr_state *hdr, struct cursor c)
{
	struct ipv6_extension *ext;

	if (!hdr_cursor(hdr, &c))
		return PARSE_PROTOCOL;
	switch (hdr->nexthdr) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_DSTOPTS:
	case IPPROTO_ROUTING:
		ext = cursor_take(&c, struct ipv6_extension);
		if (!ext)
			return PARSE_MALFORMED;
		if (hdr->nexthdr == IPPROTO_ROUTING && ext->segments_left)
			return PARSE_PROTOCOL;
		hdr->nexthdr = ext->nexthdr;
		hdr->at += (ext->length + 1) * 8;
		return HDR_MORE;
	case IPPROTO_FRAGMENT:
		return hdr_skip_fragment(hdr, &c);
	case IPPROTO_AH:
		return hdr_skip_authentication(hdr, &c);
	default:
		return PARSE_OK;
	}
}

/* Reads the IPv4 header that is next, and moves behind it. `c`: at the frame's start. */
static __always_inline int hdr_read_ipv4(struct hdr_state *hdr, struct cursor c)
{
	struct iphdr *ip;

	if (!hdr_cursor(hdr, &c))
		return PARSE_PROTOCOL;
	ip = cursor_take(&c, struct iphdr);
	if (!ip || ip->version != 4 || ip->ihl < 5)
		return PARSE_MALFORMED;
	hdr->flow.saddr = (struct address){ .word[3] = ip->saddr };
	hdr->flow.daddr = (struct address){ .word[3] = ip->daddr };
	hdr->id_at = hdr->at + offsetof(struct iphdr, id);
	hdr->id = bpf_htonl(bpf_ntohs(ip->id));
	hdr->offset = bpf_ntohs(ip->frag_off) & IPV4_OFFSET;
	hdr->fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT);
	hdr->authenticated = false;
	hdr->ip_protocol = ip->protocol;
	hdr->nexthdr = ip->protocol;
	hdr->at += ip->ihl * 4;
	return hdr->offset ? PARSE_FRAGMENT : PARSE_OK;
}

/* The same of IPv6. PARSE_OK: extension headers may follow. */
static __always_inline int hdr_read_ipv6(struct hdr_state *hdr, struct cursor c)
{
	struct ipv6hdr *ip;

	if (!hdr_cursor(hdr, &c))
		return PARSE_PROTOCOL;
	ip = cursor_take(&c, struct ipv6hdr);
	if (!ip || ip->version != 6)
		return PARSE_MALFORMED;
	__builtin_memcpy(&hdr->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(&hdr->flow.daddr, &ip->daddr, 16);
	hdr->fragment = false;
	hdr->authenticated = false;
	hdr->ip_protocol = 0;
	hdr->nexthdr = ip->nexthdr;
	hdr->at += sizeof(*ip);
	return PARSE_OK;
}

/*
 * Takes the ports that are next into `flow`, with their protocol. `least` bytes of the
 * transport header must be there. False: they aren't, or it has no ports.
 */
static __always_inline bool hdr_ports(const struct hdr_state *hdr, const struct packet *pkt,
				      struct cursor c, __u32 least, struct flow_key *flow)
{
	struct ports *ports;

	if (hdr->nexthdr != IPPROTO_TCP && hdr->nexthdr != IPPROTO_UDP)
		return false;
	if (!hdr_within(hdr, pkt, least) || !hdr_cursor(hdr, &c))
		return false;
	ports = cursor_take(&c, struct ports);
	if (!ports)
		return false;
	flow->protocol = hdr->nexthdr;
	flow->sport = ports->source;
	flow->dport = ports->dest;
	return true;
}

#endif
