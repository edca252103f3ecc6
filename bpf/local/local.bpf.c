/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backends on this node of services that are translated: the destination alone is, and the client's
 * address stays. Two programs, at tc:
 *
 *   in   ingress of balanced devices: the service's address becomes the backend's in what
 *        XDP has left a note on; the stack delivers or routes it
 *   out  egress of devices that answers leave by: and back
 *
 * The table is that of services in packets of pods (bpf/socket), with clients in the place of pods
 * and no device.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "local/end.h"
#include "local/in.h"

/* Counts the packet, and says what tc is to do with it. */
static __always_inline int local_end(struct __sk_buff *skb, const __u32 program, __u32 verdict)
{
	struct packet_counts *counts = packet_count(program);

	/* Compilers see that it is, and the verifier doesn't. */
	barrier_var(verdict);
	if (counts && verdict < PACKET_MAX) {
		counts->packets[verdict]++;
		if (verdict <= PACKET_RESTORED)
			counts->bytes += skb->len;
	}
	/* No pod's packet any more, to masquerade. */
	if (verdict == PACKET_RESTORED)
		skb->tc_index = XLAT_MARK;
	return verdict >= PACKET_DROP_NO_BACKEND ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int local_in(struct __sk_buff *skb)
{
	const struct punt_local *note = local_note(skb);

	if (likely(!note))
		return TC_ACT_UNSPEC;
	return local_end(skb, PACKET_FROM_POD, local_to_backend(skb, note));
}

static __always_inline __u32 local_answer(struct __sk_buff *skb)
{
	struct packet_work *w = packet_work();
	__u32 verdict;

	if (!w || !packet_parse(skb, w, false))
		return PACKET_PASS_OTHER;
	if (unlikely(w->p.problem == XLAT_NO_FIRST))
		return PACKET_PASS_FRAGMENT;
	w->ifindex = 0;
	verdict = packet_restore(skb, w);
	if (unlikely(w->p.flags & TCP_RST) && verdict == PACKET_RESTORED)
		local_end_flow();
	return verdict;
}

SEC("tc")
int local_out(struct __sk_buff *skb)
{
	return local_end(skb, PACKET_TO_POD, local_answer(skb));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
