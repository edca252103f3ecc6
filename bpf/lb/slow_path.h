/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets whose flow isn't in front: fragments, and ICMP. They are given the flow that
 * they belong to, and then go the way of all packets.
 */
#ifndef TOWPATH_SPECIAL_H
#define TOWPATH_SPECIAL_H

#include "lb/fragment.h"
#include "lb/icmp.h"
#include "snat/maps.h"

/*
 * For what parse_frame() did not call PARSE_OK. Returns PARSE_OK if the packet now has a
 * flow, else its verdict.
 */
__noinline int special_parse(struct xdp_md *ctx, __u32 row, __u32 parsed)
{
	struct work *w = work_of(row);

	if (!w)
		return VERDICT_PASS_MALFORMED;
	w->pkt.tcp_flags = 0;
	if (parsed == VERDICT_PASS_FRAGMENT)
		return fragment_parse(ctx, w);
	if (parsed == VERDICT_PASS_PROTOCOL)
		return icmp_parse(ctx, w);
	return parsed;
}

/*
 * The handle of the backend that a special packet goes to, given the one that its flow has
 * now; 0 for none of both.
 */
__noinline int special_handle(__u32 row, __u32 handle)
{
	struct work *w = work_of(row);

	if (!w)
		return 0;
	if (w->special & SPECIAL_ERROR)
		TRACE_FLAG(w, TRACE_ERROR);
	if (w->special & SPECIAL_FRAGMENT)
		TRACE_FLAG(w, TRACE_FRAGMENT);
	if (w->special & SPECIAL_FIRST && handle)
		fragment_learn(row, handle);
	return w->special & SPECIAL_LATER ? w->first_handle : handle;
}

static __always_inline __u32 special_no_backend(const struct work *w)
{
	return w->special & SPECIAL_LATER ? VERDICT_DROP_FRAGMENT : VERDICT_DROP_NO_BACKEND;
}

/* The verdict of a special packet whose flow is of no service. */
__noinline int special_unserved(__u32 row)
{
	struct work *w = work_of(row);

	if (!w || w->special & SPECIAL_ERROR)
		return VERDICT_PASS_PROTOCOL;
	if (!vip_known(row) && !nat_may_be_source(&w->pkt.flow.daddr))
		return VERDICT_PASS_FRAGMENT;
	/* There was a service when the first one came, or it was an answer. */
	if (w->special & SPECIAL_LATER)
		return VERDICT_DROP_FRAGMENT;
	fragment_learn(row, 0);
	return VERDICT_PASS_FRAGMENT;
}

#endif
