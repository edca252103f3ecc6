/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows of translated services that the kernel itself translates (abi/lb.h): they pass. Only packets
 * of flows that aren't known here ask for them, and nothing does where `tracks` is 0.
 *
 * Global functions, as most of what translates: the verifier looks at each once.
 */
#ifndef TOWPATH_LB_TRACKED_H
#define TOWPATH_LB_TRACKED_H

#include "lb/maps.h"
#include "lb/slow_path.h"

static __always_inline __u32 tracking_now(void)
{
	const struct settings *set;
	__u32 zero = 0;

	set = bpf_map_lookup_elem(&settings, &zero);
	return set ? *(const volatile __u8 *)&set->tracking : TRACKING_NONE;
}

/* As user space has them: of an IPv4 address nothing but the last word is set. */
static __always_inline struct flow_key tracked_key(const struct flow_key *flow)
{
	struct flow_key key = *flow;

	key._reserved = 0;
	return key;
}

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

/* The kernel knows a flow of UDP for longer by this packet. */
static __always_inline void tracked_seen(const struct lb_ctx *lb, __u64 *until)
{
	__u64 last;

	if (lb->traced || lb->pkt.flow.protocol != IPPROTO_UDP)
		return;
	last = bpf_ktime_get_ns() + tracks_udp;
	if (last > *(volatile __u64 *)until)
		*(volatile __u64 *)until = last;
}

/*
 * Whether a packet of no flow that is known here is the kernel's. A SYN is not: whatever had its
 * addresses and ports before is over.
 */
__noinline int tracked_has(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	__u32 now = tracking_now();
	__u64 *until, last = 0;
	struct flow_key key;

	if (!lb || now == TRACKING_NONE)
		return 0;
	if (now == TRACKING_GIVE)
		return 1;
	key = tracked_key(&lb->pkt.flow);
	until = bpf_map_lookup_elem(&tracked, &key);
	if (key.protocol == IPPROTO_TCP && tcp_begins(lb->pkt.tcp_flags)) {
		if (until && !lb->traced)
			bpf_map_delete_elem(&tracked, &key);
		return 0;
	}
	if (until)
		tracked_seen(lb, until);
	if (until || now != TRACKING_TAKE)
		return until != NULL;
	if (key.protocol == IPPROTO_UDP)
		last = bpf_ktime_get_ns() + tracks_udp;
	if (!lb->traced && !(lb->pkt_flags & PKT_ICMP_ERROR))
		bpf_map_update_elem(&tracked, &key, &last, BPF_ANY);
	return 1;
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
