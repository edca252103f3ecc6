/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the headers of packets that parse_packet() has put aside: fragments, ICMP, and
 * the packets that ICMP errors quote. This is no hot path. The place in the frame is in
 * the work row between steps, and the steps are global functions: the verifier looks at
 * each once, whatever came before it.
 */
#ifndef TOWPATH_WALK_H
#define TOWPATH_WALK_H

#include "net/parse.h"
#include "lb/context.h"

enum walk_result {
	WALK_ON = -2, /* else PARSE_OK or an enum verdict */
};

enum walk_limits {
	WALK_REACH = 0xfff, /* headers further into the frame are not read */
};

/* A cursor at the place that the walk has come to. False: that is too far. */
static __always_inline bool walk_cursor(struct xdp_md *ctx, const struct walk *walk,
					struct cursor *c)
{
	__u64 at = walk->at;

	if (at > WALK_REACH)
		return false;
	*c = cursor_of(ctx);
	c->pos += at;
	return true;
}

/* Whether the packet goes on for so many bytes from here on; padding isn't the packet's. */
static __always_inline bool walk_has(const struct work *w, __u32 bytes)
{
	return w->walk.at + bytes <= w->pkt.l3_offset + w->pkt.l3_length;
}

static __always_inline int walk_fragment(struct walk *walk, struct cursor *c)
{
	struct ipv6_fragment *frag = cursor_take(c, struct ipv6_fragment);

	if (!frag)
		return VERDICT_PASS_MALFORMED;
	walk->nexthdr = frag->nexthdr;
	walk->id_at = walk->at + offsetof(struct ipv6_fragment, id);
	walk->at += sizeof(*frag);
	if (!(frag->offset & bpf_htons(IPV6_FRAGMENT)))
		return WALK_ON;
	walk->id = frag->id;
	walk->offset = bpf_ntohs(frag->offset) >> 3;
	walk->fragment = true;
	return VERDICT_PASS_FRAGMENT;
}

/* Walks past one extension header as parse_ipv6_extensions() does; PARSE_OK: there is none. */
__noinline int walk_extension(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct ipv6_extension *ext;
	struct cursor c;

	if (!w || !walk_cursor(ctx, &w->walk, &c))
		return VERDICT_PASS_PROTOCOL;
	switch (w->walk.nexthdr) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_DSTOPTS:
	case IPPROTO_ROUTING:
		ext = cursor_take(&c, struct ipv6_extension);
		if (!ext)
			return VERDICT_PASS_MALFORMED;
		if (w->walk.nexthdr == IPPROTO_ROUTING && ext->segments_left)
			return VERDICT_PASS_PROTOCOL;
		w->walk.nexthdr = ext->nexthdr;
		w->walk.at += (ext->length + 1) * 8;
		return WALK_ON;
	case IPPROTO_FRAGMENT:
		return walk_fragment(&w->walk, &c);
	default:
		return PARSE_OK;
	}
}

/*
 * Walks past extension headers. A fragment header ends the walk, behind it, with
 * VERDICT_PASS_FRAGMENT, unless it is that of a whole packet.
 */
static __always_inline int walk_extensions(struct xdp_md *ctx, __u32 row)
{
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		int result = walk_extension(ctx, row);

		if (result != WALK_ON)
			return result;
	}
	return VERDICT_PASS_PROTOCOL;
}

static __always_inline int walk_ipv4(struct xdp_md *ctx, struct walk *walk)
{
	struct cursor c;
	struct iphdr *ip;

	if (!walk_cursor(ctx, walk, &c))
		return VERDICT_PASS_PROTOCOL;
	ip = cursor_take(&c, struct iphdr);
	if (!ip || ip->version != 4 || ip->ihl < 5)
		return VERDICT_PASS_MALFORMED;
	walk->flow.saddr = (struct address){ .word[3] = ip->saddr };
	walk->flow.daddr = (struct address){ .word[3] = ip->daddr };
	walk->id_at = walk->at + offsetof(struct iphdr, id);
	walk->id = bpf_htonl(bpf_ntohs(ip->id));
	walk->offset = bpf_ntohs(ip->frag_off) & IPV4_OFFSET;
	walk->fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT);
	walk->nexthdr = ip->protocol;
	walk->at += ip->ihl * 4;
	return walk->offset ? VERDICT_PASS_FRAGMENT : PARSE_OK;
}

static __always_inline int walk_ipv6(struct xdp_md *ctx, struct walk *walk, __u32 row)
{
	struct ipv6hdr *ip;
	struct cursor c;
	int result;

	if (!walk_cursor(ctx, walk, &c))
		return VERDICT_PASS_PROTOCOL;
	ip = cursor_take(&c, struct ipv6hdr);
	if (!ip || ip->version != 6)
		return VERDICT_PASS_MALFORMED;
	__builtin_memcpy(&walk->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(&walk->flow.daddr, &ip->daddr, 16);
	walk->fragment = false;
	walk->nexthdr = ip->nexthdr;
	walk->at += sizeof(*ip);
	result = walk_extensions(ctx, row);
	if (result == VERDICT_PASS_FRAGMENT && !walk->offset)
		result = walk_extensions(ctx, row);
	return result;
}

/*
 * Walks past the IP header that it stands before, of the packet's family, and past its
 * extension headers. Returns PARSE_OK before a transport header, whose packet may be a
 * first fragment; VERDICT_PASS_FRAGMENT before the rest of one that has none.
 */
__noinline int walk_ip(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);

	if (!w)
		return VERDICT_PASS_MALFORMED;
	if (w->pkt.flow.family == FAMILY_V4)
		return walk_ipv4(ctx, &w->walk);
	return walk_ipv6(ctx, &w->walk, row);
}

/*
 * Takes the ports at the walk's place into `flow`, with their protocol. `least` bytes of
 * the transport header must be there. False: they aren't, or it has no ports.
 */
static __always_inline bool walk_ports(struct xdp_md *ctx, const struct work *w, __u32 least,
				       struct flow_key *flow)
{
	struct ports *ports;
	struct cursor c;

	if (w->walk.nexthdr != IPPROTO_TCP && w->walk.nexthdr != IPPROTO_UDP)
		return false;
	if (!walk_has(w, least) || !walk_cursor(ctx, &w->walk, &c))
		return false;
	ports = cursor_take(&c, struct ports);
	if (!ports)
		return false;
	flow->protocol = w->walk.nexthdr;
	flow->sport = ports->source;
	flow->dport = ports->dest;
	return true;
}

#endif
