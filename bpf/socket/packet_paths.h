/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of what pods send, and of what they are sent. */
#ifndef TOWPATH_SOCKET_PACKET_PATHS_H
#define TOWPATH_SOCKET_PACKET_PATHS_H

#include "socket/packet_choose.h"

/* Reads a packet at a pod's device. False: it is none that could be translated. */
static __always_inline bool packet_read(struct __sk_buff *skb, struct packet_work *w,
					const bool from_pod)
{
	if (skb->vlan_present || !packet_parse(skb, w, from_pod))
		return false;
	w->ifindex = skb->ifindex;
	return true;
}

/* ---- Of pods ---------------------------------------------------------------------- */

/* Has w->ends be those of a flow that the packet, a pod's, would be an answer in, or a packet of. */
static __always_inline void packet_name_ends(struct packet_work *w, const bool answer)
{
	const struct flow_key *flow = &w->p.flow;

	w->ends.client = flow->saddr;
	w->ends.backend = answer ? flow->saddr : flow->daddr;
	w->ends.port = answer ? flow->dport : flow->sport;
	w->ends.backend_port = answer ? flow->sport : flow->dport;
}

/* What is sent to a backend's own address is answered from there: a flow that says else is over. */
static __always_inline void packet_forget_direct(struct packet_work *w)
{
	if (w->p.kind != XLAT_PLAIN ||
	    (w->p.flow.protocol == IPPROTO_TCP && !tcp_begins(w->p.flags)))
		return;
	packet_name_ends(w, false);
	if (packet_find_ends())
		packet_forget();
}

/* The frame goes back to who has sent it. */
static __always_inline int packet_swap_macs(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	__u8 mac[ETH_ALEN];

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -1;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return 0;
}

/*
 * For a flow from a pod to itself: the pod sees the service as its peer on both sides. One that
 * sees its own address would take it for forged.
 */
static __always_inline __u32 packet_hairpin(struct __sk_buff *skb, struct packet_work *w)
{
	const struct packet_flow *f = &w->found;

	if (packet_become_from(skb, w, &f->vip, f->port, false) ||
	    packet_become_to(skb, w, &f->backend, f->backend_port, false) || packet_swap_macs(skb))
		return PACKET_DROP_WRITE;
	return PACKET_HAIRPIN;
}

/* What a pod answers to itself. Asked only if there has been such a flow. */
static __noinline __u32 packet_hairpin_answer(struct __sk_buff *skb, struct packet_work *w)
{
	const struct packet_flow *f = &w->found;
	int given;

	packet_name_ends(w, true);
	if (!packet_find_ends() || !address_equal(&f->vip, &w->p.flow.daddr))
		return PACKET_PASS_NO_FLOW;
	given = packet_owner();
	if (given != PACKET_FINE)
		return given;
	if (w->p.kind == XLAT_PLAIN)
		packet_backend_seen(w);
	if (packet_become_from(skb, w, &f->vip, f->vip_port, false) ||
	    packet_become_to(skb, w, &f->client, f->client_port, false) || packet_swap_macs(skb))
		return PACKET_DROP_WRITE;
	return PACKET_HAIRPIN;
}

static __always_inline bool packet_may_be_hairpin(void)
{
	const struct packet_state *state = packet_state();

	return state && state->hairpins;
}

/* Sends a packet to its flow's backend. */
static __always_inline __u32 packet_to_backend(struct __sk_buff *skb, struct packet_work *w)
{
	const struct packet_flow *f = &w->found;

	if (address_equal(&f->client, &f->backend))
		return packet_hairpin(skb, w);
	if (packet_become_to(skb, w, &f->backend, f->backend_port, w->p.kind == XLAT_ERROR) ||
	    packet_become_from(skb, w, &f->client, f->port, false))
		return PACKET_DROP_WRITE;
	return PACKET_BALANCED;
}

/* Balances a packet whose service is w->service. Returns the verdict. */
static __always_inline __u32 packet_balance(struct __sk_buff *skb, struct packet_work *w)
{
	const struct service *service = bpf_map_lookup_elem(&services, &w->service);
	__u32 set;
	int result;

	if (!service)
		return PACKET_PASS_NO_SERVICE;
	set = *(const volatile __u32 *)&service->sources;
	if (unlikely(set) && !packet_source(set))
		return PACKET_DROP_SOURCE;
	if (unlikely(w->p.kind == XLAT_ERROR)) /* about an answer */
		result = packet_find(w) ? packet_owner() : PACKET_PASS_NO_FLOW;
	else
		result = packet_translation(w);
	return result == PACKET_FINE ? packet_to_backend(skb, w) : result;
}

/* A fragment that comes before its first one is lost, if it is to a VIP. */
static __noinline __u32 packet_early(const struct packet_work *w)
{
	return socket_is_vip(&w->p.ip.daddr, w->p.ip.family) ? PACKET_DROP_FRAGMENT
							     : PACKET_PASS_FRAGMENT;
}

/* For a packet that comes in by a pod's device. Returns the verdict. */
static __always_inline __u32 packet_from_pod(struct __sk_buff *skb)
{
	struct packet_work *w = packet_work();
	__u32 verdict;

	if (!w || !packet_read(skb, w, true))
		return PACKET_PASS_OTHER;
	if (unlikely(w->p.problem == XLAT_NO_FIRST))
		return packet_early(w);
	if (unlikely(packet_may_be_hairpin())) {
		verdict = packet_hairpin_answer(skb, w);
		if (verdict != PACKET_PASS_NO_FLOW)
			return verdict;
	}
	w->service = packet_service(w);
	if (!w->service) {
		packet_forget_direct(w);
		return PACKET_PASS_NO_SERVICE;
	}
	return packet_balance(skb, w);
}

/* ---- To pods ---------------------------------------------------------------------- */

/* For a packet that is about to get to a pod. Returns the verdict. */
static __always_inline __u32 packet_to_pod(struct __sk_buff *skb)
{
	struct packet_work *w = packet_work();

	if (!w || !packet_read(skb, w, false))
		return PACKET_PASS_OTHER;
	if (unlikely(w->p.problem == XLAT_NO_FIRST))
		return PACKET_PASS_FRAGMENT;
	return packet_restore(skb, w);
}

#endif
