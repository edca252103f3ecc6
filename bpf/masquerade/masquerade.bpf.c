/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Masquerade of pods. Four programs, at tc:
 *
 *   from_pod  ingress of pods' devices: the short way out. Read the packet, look its rule and its
 *             way up, find or bind its flow, write it, put it on the wire.
 *   to_net    egress of all other devices: what left by the stack is translated here, so that
 *             nothing of a pod's ever leaves as it is.
 *   from_net  ingress of these: answers, back to the pod.
 *   to_pod    egress of pods' devices: notes what comes in from outside, since what pods answer to
 *             that isn't translated.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "masquerade/in.h"
#include "masquerade/out.h"

/* Counts the packet, and says what tc is to do with it. */
static __always_inline int masq_end(struct __sk_buff *skb, const __u32 program, __u32 verdict)
{
	struct masquerade_counts *counts = bpf_map_lookup_elem(&masq_counts, &program);

	/* Compilers see that it is, and the verifier doesn't. */
	barrier_var(verdict);
	if (counts && verdict < MASQ_MAX) {
		counts->packets[verdict]++;
		if (verdict <= MASQ_STACK)
			counts->bytes += skb->len;
	}
	if (verdict <= MASQ_STACK)
		skb->tc_index = XLAT_MARK;
	if (verdict >= MASQ_DROP_MALFORMED)
		return TC_ACT_SHOT;
	return verdict < MASQ_STACK ? masq_send(verdict) : TC_ACT_UNSPEC;
}

static __always_inline int masq_from_pod_at(struct __sk_buff *skb, const __u32 l3)
{
	__u32 verdict;

	skb->tc_index = 0; /* whoever sent it: it isn't translated yet */
	verdict = masq_through_stack ? MASQ_PASS_STACK : masq_out(skb, l3, false);
	if (verdict == MASQ_PASS_OTHER || verdict == MASQ_HAIRPIN)
		verdict = masq_in(skb, l3);
	return masq_end(skb, MASQ_FROM_POD, verdict);
}

SEC("tc")
int masq_from_pod(struct __sk_buff *skb)
{
	return masq_from_pod_at(skb, sizeof(struct ethhdr));
}

SEC("tc")
int masq_to_pod(struct __sk_buff *skb)
{
	return masq_end(skb, MASQ_TO_POD, masq_inward(skb, sizeof(struct ethhdr)));
}

SEC("tc")
int masq_from_net(struct __sk_buff *skb)
{
	skb->tc_index = 0;
	return masq_end(skb, MASQ_FROM_NET, masq_in(skb, sizeof(struct ethhdr)));
}

SEC("tc")
int masq_from_net_l3(struct __sk_buff *skb)
{
	skb->tc_index = 0;
	return masq_end(skb, MASQ_FROM_NET, masq_in(skb, 0));
}

/* Whether it is translated already, as most of what leaves here is: counts it then. */
static __always_inline bool masq_is_done(struct __sk_buff *skb)
{
	struct masquerade_counts *counts;
	__u32 program = MASQ_TO_NET;

	if (skb->tc_index != XLAT_MARK)
		return false;
	counts = bpf_map_lookup_elem(&masq_counts, &program);
	if (counts)
		counts->packets[MASQ_PASS_DONE]++;
	return true;
}

SEC("tc")
int masq_to_net(struct __sk_buff *skb)
{
	if (masq_is_done(skb))
		return TC_ACT_UNSPEC;
	return masq_end(skb, MASQ_TO_NET, masq_leave(skb, sizeof(struct ethhdr)));
}

SEC("tc")
int masq_to_net_l3(struct __sk_buff *skb)
{
	if (masq_is_done(skb))
		return TC_ACT_UNSPEC;
	return masq_end(skb, MASQ_TO_NET, masq_leave(skb, 0));
}

char _license[] SEC("license") = "Dual BSD/GPL";
