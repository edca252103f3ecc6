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

/* To whom the port is that a remote's packet is to. NULL: it is nobody's. */
static __always_inline const struct masquerade_mapping *masq_addressed(const struct masq_work *w,
								       __u32 number)
{
	const struct masquerade_mapping *m;
	struct masquerade_endpoint key = {
		.address = w->flow.daddr,
		.source = number,
		.port = w->flow.dport,
		.protocol = w->flow.protocol,
		.family = w->flow.family,
	};

	m = bpf_map_lookup_elem(&masq_mappings, &key);
	return m && !masq_mapping_over(m, w->search.now) ? m : NULL;
}

/* Binds w->flow, a client's, to the port that it has already, of source `number`. */
__noinline int masq_bind_mapped(__u32 number)
{
	struct masq_work *w = masq_work();
	__u32 i;

	if (!w)
		return MASQ_NO_ROOM;
	masq_begin(w, hash_flow(&w->flow, masq_seed()));
	masq_look_at(0); /* says which set flows of this client's are looked for from */
	i = masq_mapped_candidate(number);
	if (i >= NAT_TRIES)
		return MASQ_NO_ROOM;
	if (i)
		masq_step_back(&w->search);
	masq_take_candidate(w, i);
	if (i)
		masq_extend_depth(i);
	return masq_bind_candidate(0);
}

/*
 * Lets a remote's packet in that is to a port that is some pod's (endpoint-independent filtering,
 * RFC 4787, REQ-8): binds the flow as if the pod had begun it. False: it is nobody's.
 */
__noinline int masq_admit(struct __sk_buff *skb, __u32 number)
{
	struct masq_work *w = masq_work();
	struct masquerade_source *source = masq_source(number);
	const struct masquerade_mapping *m;
	struct flow_key came;
	int result;

	if (!w || !source)
		return false;
	came = w->flow;
	m = masq_addressed(w, number);
	if (!m || !masq_may_bind(w))
		return false;
	w->flow.saddr = m->client;
	w->flow.sport = m->client_port;
	w->flow.daddr = came.saddr;
	w->flow.dport = came.sport;
	w->to = came.daddr;
	w->search.source = number;
	w->search.generation = source->generation;
	w->search.ifindex = skb->ifindex;
	result = masq_bind_mapped(number);
	w->to = w->flow.saddr;
	w->to_port = w->flow.sport;
	w->flow = came;
	return masq_is_bound(result);
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
	w->rule = 0;
	d = masq_decided(skb, w, false);
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
	if (!masq_find_reply(source) &&
	    !(masq_open && w->kind == MASQ_PLAIN && masq_admit(skb, source)))
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
