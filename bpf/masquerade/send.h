/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Writes what a packet is translated to, and sends it as its decision says. */
#ifndef TOWPATH_MASQUERADE_SEND_H
#define TOWPATH_MASQUERADE_SEND_H

#include "masquerade/maps.h"
#include "net/fib.h"
#include "xlat/rewrite.h"

/* `frame`: it is put into that of the decision. `hops`: one less. */
static __always_inline int masq_write(struct __sk_buff *skb, const bool out, __u32 frame,
				      __u32 hops)
{
	struct masq_work *w = masq_work();
	struct masquerade_decision *d = w ? masq_decision(w) : NULL;
	struct xlat_change change = { .hops = hops & 1, .ids = true, .frame = frame };

	if (!w || !d)
		return -1;
	change.macs = d->dmac;
	return xlat_write(skb, &w->p, out, change);
}

/* Both in functions of their own, for the verifier. */
__noinline int masq_write_out(struct __sk_buff *skb, __u32 frame, __u32 hops)
{
	return masq_write(skb, true, frame, hops);
}

__noinline int masq_write_in(struct __sk_buff *skb, __u32 frame, __u32 hops)
{
	return masq_write(skb, false, frame, hops);
}

static __always_inline int masq_send_resolved(const struct masquerade_decision *d)
{
	struct bpf_redir_neigh next = { .nh_family = d->next_family };

	if (d->next_family == AF_INET)
		next.ipv4_nh = d->next.word[3];
	else
		__builtin_memcpy(next.ipv6_nh, &d->next, 16);
	return bpf_redirect_neigh(d->tx_ifindex, &next, sizeof(next), 0);
}

static __always_inline int masq_send(__u32 verdict)
{
	const struct masq_work *w = masq_work();
	const struct masquerade_decision *d = w ? masq_decision(w) : NULL;

	if (!d)
		return TC_ACT_SHOT;
	if (verdict == MASQ_PEER)
		return bpf_redirect_peer(d->tx_ifindex, 0);
	if (verdict == MASQ_NEIGHBOUR)
		return masq_send_resolved(d);
	return bpf_redirect(d->tx_ifindex, 0);
}

#endif
