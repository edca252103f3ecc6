/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services in packets: for pods whose connect() never runs on this node's hooks. Two programs, at
 * tc of their devices on the node:
 *
 *   from_pod  ingress: a service's address becomes a backend's
 *   to_pod    egress, which all that a pod gets passes: and back
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "socket/packet_paths.h"

/* Counts the packet, and says what tc is to do with it. */
static __always_inline int packet_end(struct __sk_buff *skb, const __u32 program, __u32 verdict)
{
	struct packet_counts *counts = packet_count(program);

	/* Compilers see that it is, and the verifier doesn't. */
	barrier_var(verdict);
	if (counts && verdict < PACKET_MAX) {
		counts->packets[verdict]++;
		if (verdict <= PACKET_RESTORED)
			counts->bytes += skb->len;
	}
	/* It came from outside by its addresses; to masquerade it is an answer. */
	if (verdict == PACKET_HAIRPIN || verdict == PACKET_RESTORED)
		skb->tc_index = XLAT_MARK;
	if (verdict >= PACKET_DROP_NO_BACKEND)
		return TC_ACT_SHOT;
	return verdict == PACKET_HAIRPIN ? bpf_redirect(skb->ifindex, 0) : TC_ACT_UNSPEC;
}

SEC("tc")
int socket_from_pod(struct __sk_buff *skb)
{
	return packet_end(skb, PACKET_FROM_POD, packet_from_pod(skb));
}

SEC("tc")
int socket_to_pod(struct __sk_buff *skb)
{
	return packet_end(skb, PACKET_TO_POD, packet_to_pod(skb));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
