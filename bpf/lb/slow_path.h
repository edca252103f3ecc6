/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The slow path: packets whose flow isn't in front, fragments and ICMP. They are given the flow
 * that they belong to, and then go the way of all packets.
 */
#ifndef TOWPATH_LB_SLOW_PATH_H
#define TOWPATH_LB_SLOW_PATH_H

#include "lb/fragment.h"
#include "lb/icmp.h"
#include "net/pull.h"

/*
 * For what parse_packet() did not call PARSE_OK: if it is a frame in fragments, it looked at the
 * first one only, and headers may lie behind that. Returns what the whole frame is called.
 */
__noinline int slow_path_pull(struct xdp_md *ctx, __u32 slot, __u32 parsed)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb || !frame_in_fragments(ctx))
		return parsed;
	pull(ctx, PULL_HEADERS);
	return parse_fragments(ctx, &lb->pkt);
}

/*
 * TCP or UDP behind an authentication header (RFC 4302). That covers the packet from the IP header
 * on, of which nothing changes but what may change on any way.
 */
static __always_inline int authenticated_parse(struct xdp_md *ctx, struct lb_ctx *lb)
{
	int result;

	lb->hdr.at = lb->pkt.l3_offset;
	result = read_ip(ctx, lb->slot);
	if (result == PARSE_MALFORMED)
		return VERDICT_PASS_MALFORMED;
	if (result != PARSE_OK || lb->hdr.fragment ||
	    (lb->hdr.nexthdr != IPPROTO_TCP && lb->hdr.nexthdr != IPPROTO_UDP))
		return VERDICT_PASS_PROTOCOL;
	if (!read_transport(ctx, lb, sizeof(struct tcphdr)))
		return VERDICT_PASS_MALFORMED;
	lb->pkt_flags |= PKT_AUTHENTICATED;
	return PARSE_OK;
}

/*
 * For what parse_packet() did not call PARSE_OK. Returns PARSE_OK if the packet now has a
 * flow, else its verdict.
 */
__noinline int slow_path_parse(struct xdp_md *ctx, __u32 slot, __u32 parsed)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb)
		return VERDICT_PASS_MALFORMED;
	lb->pkt.tcp_flags = 0;
	if (parsed == VERDICT_PASS_FRAGMENT)
		return fragment_parse(ctx, lb);
	if (parsed == VERDICT_PASS_PROTOCOL && lb->pkt.flow.protocol == IPPROTO_AH)
		return authenticated_parse(ctx, lb);
	if (parsed == VERDICT_PASS_PROTOCOL)
		return icmp_parse(ctx, lb);
	return parsed;
}

/*
 * The handle of the backend that such a packet goes to, given the one that its flow has
 * now; 0 for none of both.
 */
__noinline int slow_path_handle(__u32 slot, __u32 handle)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb)
		return 0;
	if (lb->pkt_flags & PKT_ICMP_ERROR)
		TRACE_FLAG(lb, TRACE_ERROR);
	if (lb->pkt_flags & PKT_FRAGMENT)
		TRACE_FLAG(lb, TRACE_FRAGMENT);
	if (lb->pkt_flags & PKT_FRAG_FIRST && handle)
		fragment_learn(slot, handle);
	return lb->pkt_flags & PKT_FRAG_LATER ? lb->first_handle : handle;
}

static __always_inline __u32 slow_path_no_backend(const struct lb_ctx *lb)
{
	return lb->pkt_flags & PKT_FRAG_LATER ? VERDICT_DROP_FRAGMENT : VERDICT_DROP_NO_BACKEND;
}

/*
 * The verdict of such a packet that is for a service that translates, and can't be translated. What
 * the kernel gets of a packet it gets whole.
 */
static __always_inline __u32 slow_path_untranslated(const struct lb_ctx *lb)
{
	if (!(lb->pkt_flags & PKT_FRAG_FIRST))
		return VERDICT_PASS_PROTOCOL;
	fragment_learn(lb->slot, 0);
	return VERDICT_PASS_FRAGMENT;
}

/* The verdict of such a packet whose flow is of no service. `ours`: its destination may be. */
__noinline int slow_path_unserved(__u32 slot, __u32 ours)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb || lb->pkt_flags & PKT_ICMP_ERROR)
		return VERDICT_PASS_PROTOCOL;
	if (!(lb->pkt_flags & PKT_FRAGMENT))
		return VERDICT_PASS_NO_VIP;
	if (!vip_known(slot) && !ours)
		return VERDICT_PASS_FRAGMENT;
	/* There was a service when the first one came, or it was an answer. */
	if (lb->pkt_flags & PKT_FRAG_LATER)
		return VERDICT_DROP_FRAGMENT;
	fragment_learn(slot, 0);
	return VERDICT_PASS_FRAGMENT;
}

#endif
