/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Bandwidth of pods. Programs at tc:
 *
 *   bw_tag      ingress of pods' devices on the host: whose the packet is
 *   bw_pace     egress of the devices that pods' packets leave by: when it leaves, which fq keeps
 *   bw_police   the same where there is no fq: whether it leaves
 *   bw_receive  egress of pods' devices: what pods receive
 *
 * Of the last three there is one for kernels with atomics that return a value (5.12), and one with
 * locks. User space loads those that the kernel can have.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bandwidth/pace.h"
#include "bandwidth/police.h"
#include "bandwidth/route.h"

/* Whatever the pod has written there itself is overwritten. */
SEC("tc")
int bw_tag(struct __sk_buff *skb)
{
	struct bandwidth_pod *pod = bw_pod(skb->ifindex);
	__u32 aggregate = 0;
	struct bandwidth_counts *counts;
	struct bandwidth_limit *limit;
	int action = TC_ACT_UNSPEC;

	if (pod)
		aggregate = bw_of_pod(skb, pod, true) & (BANDWIDTH_AGGREGATES - 1);
	limit = bw_limit(aggregate);
	counts = bw_count(aggregate);
	skb->mark = aggregate ? BANDWIDTH_MARK << 16 | aggregate : 0;
	skb->priority = limit ? limit->priority : 0;
	if (bw_direct)
		action = bw_route(skb);
	if (counts)
		counts->packets[action == TC_ACT_REDIRECT ? BANDWIDTH_ROUTED : BANDWIDTH_TAGGED]++;
	return action;
}

SEC("tc")
int bw_pace_atomic(struct __sk_buff *skb)
{
	return bw_pace(skb, false);
}

SEC("tc")
int bw_pace_locked(struct __sk_buff *skb)
{
	return bw_pace(skb, true);
}

SEC("tc")
int bw_police_atomic(struct __sk_buff *skb)
{
	return bw_police(skb, false);
}

SEC("tc")
int bw_police_locked(struct __sk_buff *skb)
{
	return bw_police(skb, true);
}

SEC("tc")
int bw_receive_atomic(struct __sk_buff *skb)
{
	return bw_receive(skb, false);
}

SEC("tc")
int bw_receive_locked(struct __sk_buff *skb)
{
	return bw_receive(skb, true);
}

char _license[] SEC("license") = "Dual BSD/GPL";
