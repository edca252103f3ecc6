/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Cursor parsers. Each checks bounds, moves the cursor past what it read and
 * says what comes next, or what ends the parse.
 */
#ifndef TOWPATH_NET_PARSE_H
#define TOWPATH_NET_PARSE_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"
#include "net/wide.h"

#define barrier() asm volatile("" ::: "memory")
/* bpf_helpers.h has these since libbpf 1.7. */
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#endif
#ifndef unlikely
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

enum parse_limits {
	IPV6_EXTENSIONS = 8, /* headers walked before a packet is let pass */
};

/*
 * What ends a parse. The load balancer has a verdict of the same number for each of these
 * but the first, so that it returns either.
 */
enum parse_result {
	PARSE_OK = -1,
	PARSE_NOT_IP = 3,
	PARSE_PROTOCOL = 5, /* neither TCP nor UDP */
	PARSE_FRAGMENT = 6,
	PARSE_MALFORMED = 7, /* shorter than its headers say, or nonsense in them */
	PARSE_QINQ = 8,	     /* behind more tags than one, or another than 802.1Q's */
};

/* The few numbers of the wire that no uapi header names. */
enum wire {
	IPV4_FRAGMENT = 0x3fff, /* more fragments, or an offset */
	IPV4_DONT_FRAGMENT = 0x4000,
	IPV4_OFFSET = 0x1fff,
	IPV6_FRAGMENT = 0xfff9, /* an offset, or more fragments: not an atomic one (RFC 6946) */
	VLAN_VID = 0x0fff,
};

struct cursor {
	void *pos;
	void *end;
};

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

struct ports {
	__be16 source;
	__be16 dest;
};

struct ipv6_extension {
	__u8 nexthdr;
	__u8 length; /* in 8 bytes, the first 8 not counted */
	__u8 type;   /* of a routing header */
	__u8 segments_left;
};

struct ipv6_fragment {
	__u8 nexthdr;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* What the rest of the program wants to know of a packet. */
struct packet {
	struct flow_key flow;
	__u32 l3_offset; /* 14, or 18 behind a tag */
	__u32 l3_length; /* as the IP header says, so without any padding */
	__be16 id;	 /* IPv4 */
	__be16 fragment; /* IPv4: flags as they came */
	__be16 vlan;	 /* tag control word, 0 = untagged */
	__u8 tos;	 /* DSCP and ECN */
	__u8 ttl;	 /* or hop limit */
	__u8 tcp_flags;	 /* the low 8: enum tcp_flag; 0 of other protocols */
	__u8 _reserved[3];
	__u32 l4_offset; /* of the transport header from the IP header on */
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
	TCP_EDGES = TCP_FIN | TCP_SYN | TCP_RST,
	TCP_FLAGS_AT = 13, /* in the header */
	TCP_CHECKSUM_AT = 16,
};

/* Whether a segment asks for a connection: RFC 9293, 3.5. */
static __always_inline bool tcp_begins(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* Whether it is one of a connection that there is, and neither begins nor ends it. */
static __always_inline bool tcp_goes_on(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_ACK;
}

/* Of the frame that a program is given, by XDP or tc. */
#define cursor_of(ctx)                                \
	((struct cursor){                             \
		.pos = (void *)(long)(ctx)->data,     \
		.end = (void *)(long)(ctx)->data_end, \
	})

/* 64 bits wide, since the verifier allows no 32-bit arithmetic on pointers. */
static __always_inline __s64 cursor_left(const struct cursor *c)
{
	return c->end - c->pos;
}

/*
 * Set before loading: frames may be in fragments (5.18), of which only the first lies between
 * `data` and `data_end`. Headers are looked for there and nowhere else.
 */
const volatile __u32 xdp_fragments = 0;

/* Bytes of the frame, whether or not it is in fragments. */
static __always_inline __s64 frame_length(struct xdp_md *ctx)
{
	if (xdp_fragments)
		return bpf_xdp_get_buff_len(ctx);
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

static __always_inline bool frame_in_fragments(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);

	return xdp_fragments && frame_length(ctx) > cursor_left(&c);
}

/* Whether the frame goes on for so many bytes, of which so many are left of its first fragment. */
static __always_inline bool frame_reaches(struct xdp_md *ctx, __u32 bytes, __s64 left)
{
	struct cursor c = cursor_of(ctx);

	if (likely(bytes <= left))
		return true;
	return xdp_fragments && bytes - left <= frame_length(ctx) - cursor_left(&c);
}

/* The header at the cursor, or NULL if the frame ends within it. */
#define cursor_take(c, type)                          \
	({                                            \
		type *_header = (c)->pos;             \
		if ((void *)(_header + 1) > (c)->end) \
			_header = NULL;               \
		else                                  \
			(c)->pos = _header + 1;       \
		_header;                              \
	})

/* Those that the kernel has VLAN devices for. */
static __always_inline bool is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* In one load: the header says that it is packed, and the compiler takes its fields by bytes. */
static __always_inline __be16 ethertype_of(const struct ethhdr *eth)
{
	return *(const wide16 *)((const void *)eth + 2 * ETH_ALEN);
}

/* Returns the EtherType behind at most one 802.1Q tag, 0 when truncated. */
static __always_inline __be16 parse_ethernet(struct cursor *c, __be16 *vlan)
{
	struct ethhdr *eth = cursor_take(c, struct ethhdr);
	struct vlan_tag *tag;

	*vlan = 0;
	if (!eth)
		return 0;
	if (likely(ethertype_of(eth) != bpf_htons(ETH_P_8021Q)))
		return ethertype_of(eth);

	tag = cursor_take(c, struct vlan_tag);
	if (!tag)
		return 0;
	*vlan = tag->tci;
	return tag->ethertype;
}

/* Takes the ports, and of TCP the flags, from a header that is there. */
static __always_inline void take_ports(const void *header, bool tcp, struct packet *pkt)
{
	*(wide32 *)&pkt->flow.sport = *(const wide32 *)header;
	pkt->tcp_flags = tcp ? ((const __u8 *)header)[TCP_FLAGS_AT] : 0;
}

static __always_inline int parse_tcp(struct cursor *c, __u32 left, struct packet *pkt)
{
	struct tcphdr *tcp = cursor_take(c, struct tcphdr);

	if (!tcp || left < sizeof(*tcp))
		return PARSE_MALFORMED;
	take_ports(tcp, true, pkt);
	return PARSE_OK;
}

/* `left`: bytes of the packet, as its IP header says, from the cursor on. */
static __always_inline int parse_ports(struct cursor *c, __u32 left, struct packet *pkt)
{
	struct udphdr *udp;

	if (likely(pkt->flow.protocol == IPPROTO_TCP))
		return parse_tcp(c, left, pkt);
	if (pkt->flow.protocol != IPPROTO_UDP)
		return PARSE_PROTOCOL;
	udp = cursor_take(c, struct udphdr);
	if (!udp || left < sizeof(*udp))
		return PARSE_MALFORMED;
	take_ports(udp, false, pkt);
	return PARSE_OK;
}

/*
 * Whether a packet ends behind its frame, of whose first fragment so many bytes are `left`, and so
 * many lie `behind` that.
 */
static __always_inline bool outruns(__u32 length, __s64 left, __s64 behind)
{
	if (likely(length <= left))
		return false;
	if (!behind)
		return true;
	barrier_var(left); /* a number, not a difference of pointers that others are added to */
	return length - left > behind;
}

/* Takes from an IPv4 header that is there all but lengths and ports. */
static __always_inline void take_ipv4(const struct iphdr *ip, struct packet *pkt)
{
	pkt->tos = ip->tos;
	pkt->ttl = ip->ttl;
	pkt->id = ip->id;
	pkt->fragment = ip->frag_off;
	pkt->flow = (struct flow_key){
		.saddr.word[3] = ip->saddr,
		.daddr.word[3] = ip->daddr,
		.protocol = ip->protocol,
		.family = FAMILY_V4,
	};
}

/* `behind`: bytes of the frame behind its first fragment. */
static __always_inline int parse_ipv4(struct cursor *c, struct packet *pkt, __s64 behind)
{
	__s64 left = cursor_left(c);
	__u32 header;
	struct iphdr *ip = cursor_take(c, struct iphdr);

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return PARSE_MALFORMED;
	header = ip->ihl * 4;
	pkt->l3_length = bpf_ntohs(ip->tot_len);
	if (pkt->l3_length < header || outruns(pkt->l3_length, left, behind))
		return PARSE_MALFORMED;

	pkt->l4_offset = header;
	take_ipv4(ip, pkt);
	if (unlikely(ip->frag_off & bpf_htons(IPV4_FRAGMENT)))
		return PARSE_FRAGMENT;

	/* Options are skipped here and carried along with the packet. */
	c->pos = (void *)ip + header;
	return parse_ports(c, pkt->l3_length - header, pkt);
}

/*
 * Walks to the transport header. A routing header with segments left means that
 * the destination in the packet is not its last, and it is not ours to balance.
 */
static __always_inline int parse_ipv6_extensions(struct cursor *c, __u8 nexthdr, __u8 *protocol)
{
	struct ipv6_extension *ext;
	struct ipv6_fragment *frag;

#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		switch (nexthdr) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
			ext = cursor_take(c, struct ipv6_extension);
			if (!ext)
				return PARSE_MALFORMED;
			if (nexthdr == IPPROTO_ROUTING && ext->segments_left)
				return PARSE_PROTOCOL;
			nexthdr = ext->nexthdr;
			c->pos = (void *)ext + (ext->length + 1) * 8;
			break;
		case IPPROTO_FRAGMENT:
			frag = cursor_take(c, struct ipv6_fragment);
			if (!frag)
				return PARSE_MALFORMED;
			if (frag->offset & bpf_htons(IPV6_FRAGMENT))
				return PARSE_FRAGMENT;
			nexthdr = frag->nexthdr;
			break;
		default:
			*protocol = nexthdr;
			return PARSE_OK;
		}
	}
	return PARSE_PROTOCOL;
}

static __always_inline void take_address(struct address *to, const void *from)
{
	((wide64 *)to)[0] = ((const wide64 *)from)[0];
	((wide64 *)to)[1] = ((const wide64 *)from)[1];
}

/* As take_ipv4(). */
static __always_inline void take_ipv6(const struct ipv6hdr *ip, struct packet *pkt)
{
	pkt->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	pkt->ttl = ip->hop_limit;
	pkt->id = pkt->fragment = 0;
	take_address(&pkt->flow.saddr, &ip->saddr);
	take_address(&pkt->flow.daddr, &ip->daddr);
	pkt->flow.family = FAMILY_V6;
	pkt->flow.protocol = ip->nexthdr;
	pkt->flow._reserved = 0;
}

static __always_inline int parse_ipv6(struct cursor *c, struct packet *pkt, __s64 behind)
{
	__s64 left = cursor_left(c);
	__u32 after;
	struct ipv6hdr *ip = cursor_take(c, struct ipv6hdr);
	void *start = ip;
	int result;

	if (!ip || ip->version != 6)
		return PARSE_MALFORMED;
	pkt->l3_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (outruns(pkt->l3_length, left, behind))
		return PARSE_MALFORMED;

	take_ipv6(ip, pkt);
	if (unlikely(ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)) {
		result = parse_ipv6_extensions(c, ip->nexthdr, &pkt->flow.protocol);
		if (result != PARSE_OK)
			return result;
	}
	after = c->pos - start;
	if (after > pkt->l3_length)
		return PARSE_MALFORMED;
	pkt->l4_offset = after;
	return parse_ports(c, pkt->l3_length - after, pkt);
}

/* The headers that nearly all frames have, and no others. `v4` is a constant. */
static __always_inline __u32 plain_ip(const bool v4)
{
	return v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

static __always_inline __u32 plain_headers(const bool v4)
{
	return sizeof(struct ethhdr) + plain_ip(v4) + sizeof(struct tcphdr);
}

/* Takes all but ports from such headers, which are there. */
static __always_inline void take_plain_ip(void *frame, struct packet *pkt, const bool v4)
{
	void *ip = frame + sizeof(struct ethhdr);
	__be16 length = v4 ? ((struct iphdr *)ip)->tot_len : ((struct ipv6hdr *)ip)->payload_len;

	if (v4)
		take_ipv4(ip, pkt);
	else
		take_ipv6(ip, pkt);
	pkt->l3_length = bpf_ntohs(length) + (v4 ? 0 : plain_ip(v4));
	pkt->l3_offset = sizeof(struct ethhdr);
	pkt->l4_offset = plain_ip(v4);
	pkt->vlan = 0;
}

/*
 * The same of a frame as nearly all are: untagged, whole, of TCP or UDP, without options, extension
 * headers or fragments. False: it is another one, or shorter than a TCP header can be; parse_frame()
 * knows what to call it.
 */
static __always_inline bool parse_plain(struct cursor c, struct packet *pkt, const bool v4)
{
	void *ip = c.pos + sizeof(struct ethhdr);
	__u64 length;

	if (c.pos + plain_headers(v4) > c.end)
		return false;
	if (v4 ? *(__u8 *)ip != 0x45 : *(__u8 *)ip >> 4 != 6)
		return false;
	take_plain_ip(c.pos, pkt, v4);
	if (v4 && unlikely(pkt->fragment & bpf_htons(IPV4_FRAGMENT)))
		return false;
	length = pkt->l3_length;
	barrier_var(length); /* of 32 bits 5.10 would not know that they are above 0 */
	length &= 0x1ffff;
	if (length < plain_headers(v4) - sizeof(struct ethhdr) || ip + length > c.end)
		return false;
	if (likely(pkt->flow.protocol == IPPROTO_TCP))
		take_ports(ip + plain_ip(v4), true, pkt);
	else if (pkt->flow.protocol == IPPROTO_UDP)
		take_ports(ip + plain_ip(v4), false, pkt);
	else
		return false;
	return true;
}

/*
 * Takes the same once more, of a frame that parse_plain() has looked at. False: it is no longer
 * there, which only the verifier believes.
 */
static __always_inline bool take_plain(struct cursor c, struct packet *pkt, const bool v4)
{
	if (c.pos + plain_headers(v4) > c.end)
		return false;
	take_plain_ip(c.pos, pkt, v4);
	take_ports(c.pos + sizeof(struct ethhdr) + plain_ip(v4),
		   likely(pkt->flow.protocol == IPPROTO_TCP), pkt);
	return true;
}

/*
 * Fills `pkt` from the frame: all of it if it returns PARSE_OK, all but the ports, and for
 * IPv6 the protocol and where the transport is, if PARSE_FRAGMENT, all but the ports
 * if PARSE_PROTOCOL.
 */
static __always_inline int parse_frame(struct cursor c, const void *frame, struct packet *pkt,
				       __s64 behind)
{
	__be16 ethertype = parse_ethernet(&c, &pkt->vlan);

	pkt->l3_offset = c.pos - frame;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(&c, pkt, behind);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(&c, pkt, behind);
	if (is_tag(ethertype))
		return PARSE_QINQ;
	return ethertype ? PARSE_NOT_IP : PARSE_MALFORMED;
}

/*
 * Of the frame that a program is given. Its start is read from the context once more, since it
 * would be kept in a register beside the cursor. A frame in fragments may be PARSE_MALFORMED, for
 * its length: see parse_fragments().
 */
#define parse_packet(ctx, pkt) parse_frame(cursor_of(ctx), (const void *)(long)(ctx)->data, pkt, 0)

/* The same of a frame in fragments. */
static __always_inline int parse_fragments(struct xdp_md *ctx, struct packet *pkt)
{
	struct cursor c = cursor_of(ctx);

	return parse_frame(c, (const void *)(long)ctx->data, pkt,
			   frame_length(ctx) - cursor_left(&c));
}

#endif
