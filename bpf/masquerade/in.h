/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes from outside: answers to translated flows, and what pods are sent untranslated. */
#ifndef TOWPATH_MASQUERADE_IN_H
#define TOWPATH_MASQUERADE_IN_H

#include "masquerade/bind.h"
#include "masquerade/decide.h"
#include "masquerade/rewrite.h"
#include "masquerade/send.h"

/*
 * For what is to a translated address and one of the ports, and nobody's answer. Sockets of this
 * node's that have such a port all the same get what is theirs. Echoes are the stack's: their
 * identifiers are anybody's.
 */
static __always_inline __u32 masq_unsolicited(struct __sk_buff *skb, struct masq_work *w,
					      __u32 source)
{
	if (w->kind != MASQ_PLAIN || w->ip.offset || w->flow.protocol == MASQ_SCTP)
		return MASQ_PASS_LOCAL;
	if (masq_port_taken(w->flow.dport, w->flow.protocol) ||
	    masq_has_socket(skb, source, w->flow.dport, 1))
		return MASQ_PASS_SOCKET;
	return masq_pass_unsolicited ? MASQ_PASS_UNSOLICITED : MASQ_DROP_UNSOLICITED;
}

/* Notes a packet of the remote's. */
static __always_inline void masq_remote_seen(const struct masq_work *w)
{
	struct nat_life *life = masq_life(w);

	if (life)
		masq_note(life, &life->backend, NAT_ANSWERED | masq_marks(w), w->search.now);
}

/* Whether a packet may be an answer at all: most of what a node gets isn't. */
static __always_inline bool masq_may_be_answer(const struct masq_work *w)
{
	if (unlikely(w->problem != MASQ_FINE || w->kind == MASQ_ECHO_ODD))
		return false;
	if (w->flow.protocol == IPPROTO_TCP || w->flow.protocol == IPPROTO_UDP ||
	    w->kind == MASQ_ECHO)
		return masq_is_own_port(w->flow.dport);
	return true;
}

/* Sends an answer, whose client is in w->to, to the pod. */
static __always_inline __u32 masq_arrive(struct __sk_buff *skb, struct masq_work *w)
{
	struct masquerade_decision *d;
	__be16 port = w->flow.dport;
	struct address address = w->flow.daddr;
	__u32 verdict;
	bool stack;

	/* The way is looked up as that of the packet that it becomes. */
	w->flow.daddr = w->to;
	w->flow.dport = w->to_port;
	d = masq_decided(skb, w, hash_flow(&w->flow, masq_seed()), false);
	w->flow.daddr = address;
	w->flow.dport = port;
	if (!d)
		return MASQ_DROP_WRITE;
	verdict = d->verdict;
	if (unlikely(d->mtu && w->length > d->mtu))
		verdict = MASQ_STACK; /* it says so, or divides the packet */
	stack = verdict == MASQ_STACK;
	if (!stack && unlikely(w->ip.ttl <= 1))
		return MASQ_DROP_TTL;
	if (masq_write_in(skb, verdict == MASQ_SENT, !stack))
		return MASQ_DROP_WRITE;
	return verdict;
}

/* For a packet that comes in by any device. Returns the verdict. */
static __always_inline __u32 masq_in(struct __sk_buff *skb, const __u32 l3)
{
	struct masq_work *w = masq_work();
	__u32 source;

	if (!w || skb->vlan_present || skb->pkt_type)
		return MASQ_PASS_OTHER;
	w->egress = 0;
	w->rx_ifindex = skb->ifindex;
	if (!masq_parse(skb, w, l3, false) || !masq_may_be_answer(w))
		return MASQ_PASS_OTHER;
	source = masq_number(&w->flow.daddr, w->flow.family);
	if (source >= MASQ_SOURCES)
		return MASQ_PASS_OTHER;
	if (!masq_find_reply(source))
		return masq_unsolicited(skb, w, source);
	if (likely(w->kind != MASQ_ERROR))
		masq_remote_seen(w);
	if (unlikely(w->ip.fragment))
		masq_learn_fragment();
	return masq_arrive(skb, w);
}

/* ---- To pods, untranslated -------------------------------------------------------- */

/* Turns the packet's flow into that of its answers. */
static __always_inline void masq_turn(struct masq_work *w)
{
	struct address address = w->flow.saddr;
	__be16 port = w->flow.sport;

	w->flow.saddr = w->flow.daddr;
	w->flow.daddr = address;
	w->flow.sport = w->flow.dport;
	w->flow.dport = port;
}

__noinline int masq_note_inbound(struct __sk_buff *skb)
{
	struct masq_work *w = masq_work();
	struct masquerade_inbound entry = {}, *known;
	__u32 *rule;

	if (!w)
		return MASQ_PASS_OTHER;
	masq_turn(w);
	entry.seen = w->jiffies >> NAT_SEEN_SHIFT;
	known = bpf_map_lookup_elem(&masq_inbound, &w->flow);
	if (known) {
		if (known->seen != entry.seen)
			known->seen = entry.seen;
		return MASQ_PASS_INBOUND;
	}
	rule = masq_rule(skb->ifindex, &w->flow.saddr, w->flow.family);
	if (!rule)
		return MASQ_PASS_OTHER;
	if (masq_spared(*rule, &w->flow.daddr, w->flow.family))
		return MASQ_PASS_EXCLUDED;
	bpf_map_update_elem(&masq_inbound, &w->flow, &entry, BPF_ANY);
	return MASQ_PASS_INBOUND;
}

/* For what the stack sends to a pod. */
static __always_inline __u32 masq_inward(struct __sk_buff *skb, const __u32 l3)
{
	struct masq_work *w = masq_work();

	if (skb->tc_index == MASQ_MARK)
		return MASQ_PASS_DONE;
	if (!w || !skb->ingress_ifindex)
		return MASQ_PASS_LOCAL;
	if (!masq_parse(skb, w, l3, false) || w->problem != MASQ_FINE || w->kind == MASQ_ERROR)
		return MASQ_PASS_OTHER;
	return masq_note_inbound(skb);
}

#endif
