/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes from outside: answers to translated flows, and what pods are sent untranslated. */
#ifndef TOWPATH_MASQUERADE_IN_H
#define TOWPATH_MASQUERADE_IN_H

#include "masquerade/bind.h"
#include "masquerade/decide.h"
#include "masquerade/send.h"

/*
 * For what is to a translated address and one of the ports, and nobody's answer. Sockets of this
 * node's that have such a port all the same get what is theirs. Echoes are the stack's: their
 * identifiers are anybody's.
 */
static __always_inline __u32 masq_unsolicited(struct __sk_buff *skb, struct masq_work *w,
					      __u32 source)
{
	if (w->p.kind != XLAT_PLAIN || w->p.ip.offset || w->p.flow.protocol == XLAT_SCTP)
		return MASQ_PASS_LOCAL;
	if (masq_port_taken(w->p.flow.dport, w->p.flow.protocol) ||
	    masq_has_socket(skb, source, w->p.flow.dport, 1))
		return MASQ_PASS_SOCKET;
	return masq_pass_unsolicited ? MASQ_PASS_UNSOLICITED : MASQ_DROP_UNSOLICITED;
}

/* To whom the port is that a remote's packet is to. NULL: it is nobody's. */
static __always_inline const struct masquerade_mapping *masq_addressed(const struct masq_work *w,
								       __u32 number)
{
	const struct masquerade_mapping *m;
	struct masquerade_endpoint key = {
		.address = w->p.flow.daddr,
		.source = number,
		.port = w->p.flow.dport,
		.protocol = w->p.flow.protocol,
		.family = w->p.flow.family,
	};

	m = bpf_map_lookup_elem(&masq_mappings, &key);
	return m && !masq_mapping_over(m, w->search.now) ? m : NULL;
}

/* Binds w->p.flow, a client's, to the port that it has already, of source `number`. */
__noinline int masq_bind_mapped(__u32 number)
{
	struct masq_work *w = masq_work();
	__u32 i;

	if (!w)
		return MASQ_NO_ROOM;
	masq_begin(w, hash_flow(&w->p.flow, masq_seed()));
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
	came = w->p.flow;
	m = masq_addressed(w, number);
	if (!m || !masq_may_bind(w))
		return false;
	w->p.flow.saddr = m->client;
	w->p.flow.sport = m->client_port;
	w->p.flow.daddr = came.saddr;
	w->p.flow.dport = came.sport;
	w->p.to = came.daddr;
	w->search.source = number;
	w->search.generation = source->generation;
	w->search.ifindex = skb->ifindex;
	result = masq_bind_mapped(number);
	w->p.to = w->p.flow.saddr;
	w->p.to_port = w->p.flow.sport;
	w->p.flow = came;
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
	if (unlikely(w->p.problem != XLAT_FINE || w->p.kind == XLAT_ECHO_ODD))
		return false;
	if (w->p.flow.protocol == IPPROTO_TCP || w->p.flow.protocol == IPPROTO_UDP ||
	    w->p.kind == XLAT_ECHO)
		return masq_is_own_port(w->p.flow.dport);
	return true;
}

/* Sends an answer, whose client is in w->p.to, to the pod. */
static __always_inline __u32 masq_arrive(struct __sk_buff *skb, struct masq_work *w)
{
	struct masquerade_decision *d;
	__be16 port = w->p.flow.dport;
	struct address address = w->p.flow.daddr;
	__u32 verdict;
	bool stack;

	/* The way is looked up as that of the packet that it becomes. */
	w->p.flow.daddr = w->p.to;
	w->p.flow.dport = w->p.to_port;
	w->rule = 0;
	d = masq_decided(skb, w, false);
	w->p.flow.daddr = address;
	w->p.flow.dport = port;
	if (!d)
		return MASQ_DROP_WRITE;
	verdict = d->verdict;
	if (unlikely(d->mtu && w->p.length > d->mtu))
		verdict = MASQ_STACK; /* it says so, or divides the packet */
	stack = verdict == MASQ_STACK;
	if (!stack && unlikely(w->p.ip.ttl <= 1))
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
	source = masq_number(&w->p.flow.daddr, w->p.flow.family);
	if (source >= MASQ_SOURCES)
		return MASQ_PASS_OTHER;
	if (!masq_find_reply(source) &&
	    !(masq_open && w->p.kind == XLAT_PLAIN && masq_admit(skb, source)))
		return masq_unsolicited(skb, w, source);
	if (likely(w->p.kind != XLAT_ERROR))
		masq_remote_seen(w);
	if (unlikely(w->p.ip.fragment))
		xlat_learn_fragment();
	return masq_arrive(skb, w);
}

/* ---- To pods, untranslated -------------------------------------------------------- */

/* Turns the packet's flow into that of its answers. */
static __always_inline void masq_turn(struct masq_work *w)
{
	struct address address = w->p.flow.saddr;
	__be16 port = w->p.flow.sport;

	w->p.flow.saddr = w->p.flow.daddr;
	w->p.flow.daddr = address;
	w->p.flow.sport = w->p.flow.dport;
	w->p.flow.dport = port;
}

/*
 * Notes that a pod's port was asked by one of the node's own addresses: the stack has given it to who
 * asks. Where bridges hand packets to netfilter, the answer has got its address back when it is
 * seen here, and is to somebody that nothing is known of.
 */
__noinline int masq_note_asked(__u32 seen)
{
	struct masq_work *w = masq_work();
	struct masquerade_inbound entry = { .seen = seen }, *known;
	struct flow_key key = {};

	if (!w || masq_number(&w->p.flow.daddr, w->p.flow.family) >= MASQ_SOURCES)
		return 0;
	key.saddr = w->p.flow.saddr;
	key.sport = w->p.flow.sport;
	key.protocol = w->p.flow.protocol;
	key.family = w->p.flow.family;
	known = bpf_map_lookup_elem(&masq_inbound, &key);
	if (!known)
		bpf_map_update_elem(&masq_inbound, &key, &entry, BPF_ANY);
	else if (known->seen != seen)
		known->seen = seen;
	return 0;
}

__noinline int masq_note_inbound(struct __sk_buff *skb)
{
	struct masq_work *w = masq_work();
	struct masquerade_inbound entry = {}, *known;
	__u32 *rule;

	if (!w)
		return MASQ_PASS_OTHER;
	masq_turn(w);
	entry.seen = w->p.jiffies >> NAT_SEEN_SHIFT;
	known = bpf_map_lookup_elem(&masq_inbound, &w->p.flow);
	if (known) {
		if (known->seen == entry.seen)
			return MASQ_PASS_INBOUND;
		known->seen = entry.seen;
		masq_note_asked(entry.seen);
		return MASQ_PASS_INBOUND;
	}
	rule = masq_rule(skb->ifindex, &w->p.flow.saddr, w->p.flow.family);
	if (!rule)
		return MASQ_PASS_OTHER;
	masq_note_asked(entry.seen);
	if (masq_spared(*rule, &w->p.flow.daddr, w->p.flow.family))
		return MASQ_PASS_EXCLUDED;
	bpf_map_update_elem(&masq_inbound, &w->p.flow, &entry, BPF_ANY);
	return MASQ_PASS_INBOUND;
}

/* For what the stack sends to a pod. */
static __always_inline __u32 masq_inward(struct __sk_buff *skb, const __u32 l3)
{
	struct masq_work *w = masq_work();

	if (skb->tc_index == XLAT_MARK)
		return MASQ_PASS_DONE;
	if (!w || !skb->ingress_ifindex)
		return MASQ_PASS_LOCAL;
	if (!masq_parse(skb, w, l3, false) || w->p.problem != XLAT_FINE || w->p.kind == XLAT_ERROR)
		return MASQ_PASS_OTHER;
	return masq_note_inbound(skb);
}

#endif
