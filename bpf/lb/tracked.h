/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows of translated services that the kernel itself translates (abi/lb.h): they pass. Only packets
 * of flows that aren't known here ask for them, and nothing does where `tracks` is 0.
 *
 * Global functions, as most of what translates: the verifier looks at each once.
 */
#ifndef TOWPATH_LB_TRACKED_H
#define TOWPATH_LB_TRACKED_H

#include "lb/slow_path.h"
#include "lb/tracked_flows.h"

/* Of a flow that is known here, while flows are given to the kernel: what is noted of it. */
static __always_inline const __u64 *tracked_noted(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_key key;

	if (!lb || tracking_now() != TRACKING_GIVE)
		return NULL;
	key = tracked_key(&lb->pkt.flow);
	return bpf_map_lookup_elem(&tracked, &key);
}

/* Whether a flow that is known here was given to the kernel. */
__noinline int tracked_given(__u32 slot)
{
	const __u64 *noted = tracked_noted(slot);

	return noted && *(const volatile __u64 *)noted != TRACKED_HELD;
}

/* Whether it is just being given. */
__noinline int tracked_held(__u32 slot)
{
	const __u64 *noted = tracked_noted(slot);

	return noted && *(const volatile __u64 *)noted == TRACKED_HELD;
}

/* Whether a packet of no flow that is known here is the kernel's: see tracked_has_key(). */
__noinline int tracked_has(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_key key;

	if (!lb)
		return 0;
	if (tracking_now() == TRACKING_GIVE)
		return 1;
	key = tracked_key(&lb->pkt.flow);
	return tracked_has_key(&key, lb->pkt.tcp_flags, !lb->traced,
			       !(lb->pkt_flags & PKT_ICMP_ERROR));
}

/*
 * Whether a flow of the kernel's has an address and port of ours towards a backend: answers to it
 * couldn't be told from those to another flow, and would go to whoever has that.
 */
static __always_inline bool tracked_holds(const struct flow_key *answer)
{
	return tracking_now() != TRACKING_NONE && bpf_map_lookup_elem(&tracked, answer);
}

/* Has it pass, whole if it is in fragments. Returns the verdict. */
__noinline int tracked_pass(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (lb && lb->pkt_flags & PKT_FRAG_FIRST)
		fragment_learn(slot, 0);
	return VERDICT_PASS_TRACKED;
}

#endif
