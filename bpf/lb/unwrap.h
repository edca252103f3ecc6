/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A tunnel's packet that is for this node, and for a VIP within: its outer header is taken off, and
 * from then on it is as if it had come like that. Any other one goes on as it came.
 */
#ifndef TOWPATH_LB_UNWRAP_H
#define TOWPATH_LB_UNWRAP_H

#include "decap/unwrap.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "net/pull.h"

/* Set before loading: there are addresses to unwrap for. Without, the verifier leaves all this out. */
const volatile __u32 unwraps = 0;

/* Whether it may be a tunnel's by its port. */
static __always_inline bool has_tunnel_port(const struct flow_key *flow)
{
	return takes_udp && flow->protocol == IPPROTO_UDP && is_tunnel_port(flow->dport);
}

/* `parsed`: what the parser says. */
static __always_inline bool may_be_wrapped(const struct lb_ctx *lb, int parsed)
{
	return parsed == PARSE_PROTOCOL || (parsed == PARSE_OK && has_tunnel_port(&lb->pkt.flow));
}

static __always_inline __u32 unwrap_verdict(__u32 verdict)
{
	if (verdict == DECAP_DROP_ECN)
		return VERDICT_DROP_UNWRAP_ECN;
	if (verdict == UNWRAP_NO_HOP)
		return VERDICT_DROP_TTL;
	return verdict == DECAP_DROP_ADJUST ? VERDICT_DROP_HEADROOM : VERDICT_DROP_UNWRAP_MALFORMED;
}

/*
 * Whether the packet at the cursor is for a VIP: PARSE_OK, or PARSE_PROTOCOL if it isn't, or
 * PARSE_MALFORMED.
 */
static __always_inline int inner_for_vip(struct cursor c, struct lb_ctx *lb,
					 const struct outer_header *outer)
{
	struct address daddr = lb->pkt.flow.daddr;
	__u8 family = lb->pkt.flow.family;

	if (outer->protocol == IPPROTO_IPIP) {
		struct iphdr *ip = cursor_take(&c, struct iphdr);

		if (!ip)
			return PARSE_MALFORMED;
		lb->pkt.flow.daddr = (struct address){ .word[3] = ip->daddr };
		lb->pkt.flow.family = FAMILY_V4;
	} else {
		struct ipv6hdr *ip = cursor_take(&c, struct ipv6hdr);

		if (!ip)
			return PARSE_MALFORMED;
		take_address(&lb->pkt.flow.daddr, &ip->daddr);
		lb->pkt.flow.family = FAMILY_V6;
	}
	if (vip_known(lb->slot))
		return PARSE_OK;
	lb->pkt.flow.daddr = daddr;
	lb->pkt.flow.family = family;
	return PARSE_PROTOCOL;
}

static __always_inline void count_unwrapped(const struct lb_ctx *lb, const struct decap_key *key,
					    __u32 length)
{
	struct decap_counters *counters;

	if (lb->traced)
		return;
	counters = bpf_map_lookup_elem(&unwrap_addresses, key);
	if (!counters)
		return;
	counters->packets++;
	counters->bytes += length;
}

/* Of which service the packet would be as it came: what has one is no tunnel's. */
static __always_inline bool is_served(struct lb_ctx *lb, int parsed)
{
	return parsed == PARSE_OK && service_lookup(lb, service_exact(&lb->pkt.flow));
}

/*
 * For a packet that may be wrapped: returns what the parser says of the packet within, or `parsed`
 * where that stays in there, or the verdict of one that makes no sense.
 */
__noinline int unwrap_parse(struct xdp_md *ctx, __u32 slot, __u32 parsed)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct outer_header outer = {};
	void *frame, *header;
	__u32 verdict, length = 0;
	struct cursor c;
	int result;

	if (!lb || is_served(lb, parsed))
		return parsed;
	if (xdp_fragments && frame_in_fragments(ctx))
		pull(ctx, PULL_HEADERS);
	c = cursor_of(ctx);
	frame = c.pos;
	if (!parse_outer(ctx, &c, &header, &outer) ||
	    !bpf_map_lookup_elem(&unwrap_addresses, &outer.key))
		return parsed;
	if (outer.fragment)
		return parsed;
	if (outer.malformed)
		return VERDICT_DROP_UNWRAP_MALFORMED;
	result = inner_for_vip(c, lb, &outer);
	if (result != PARSE_OK)
		return result == PARSE_MALFORMED ? VERDICT_DROP_UNWRAP_MALFORMED : parsed;
	/* It is on its way to a backend: a hop, so that two who unwrap for each other end a loop. */
	verdict = unwrap(ctx, &c, frame, header, &outer, 1, &length);
	if (verdict != DECAP_UNWRAPPED)
		return unwrap_verdict(verdict);
	count_unwrapped(lb, &outer.key, length);

	result = parse_packet(ctx, &lb->pkt);
	barrier();
	if (xdp_fragments && unlikely(result != PARSE_OK))
		result = slow_path_pull(ctx, slot, result);
	return result;
}

#endif
