/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What pods send. */
#ifndef TOWPATH_MASQUERADE_OUT_H
#define TOWPATH_MASQUERADE_OUT_H

#include "masquerade/bind.h"
#include "masquerade/decide.h"
#include "masquerade/send.h"

static __always_inline bool masq_begins(const struct masq_work *w)
{
	return w->p.flow.protocol != IPPROTO_TCP || tcp_begins(w->p.flags);
}

/* How long nothing has come in of a flow. User space knows the low 32 bits of jiffies alone. */
static __always_inline __u32 masq_inbound_age(__u64 jiffies, const struct masquerade_inbound *in)
{
	return ((__u32)(jiffies >> NAT_SEEN_SHIFT) - in->seen) &
	       ((1U << (32 - NAT_SEEN_SHIFT)) - 1);
}

/* Whether so much is noted of what came in, as of late. An answer of the pod's keeps it, too. */
static __always_inline bool masq_is_noted(const struct masq_work *w, const struct flow_key *flow)
{
	struct masquerade_inbound *in = bpf_map_lookup_elem(&masq_inbound, flow);
	__u32 allowed = flow->protocol == IPPROTO_TCP ? nat_tcp_open : nat_udp_open;
	__u32 now = w->p.jiffies >> NAT_SEEN_SHIFT;

	if (!in || masq_inbound_age(w->p.jiffies, in) > allowed)
		return false;
	if (in->seen != now)
		in->seen = now;
	return true;
}

/*
 * Whether the flow came in from outside, so that this is an answer. Global, for the verifier. One of
 * a port that was asked by an address of the node's may be: the stack knows, and what isn't will be
 * seen when it leaves.
 */
__noinline int masq_is_inbound(void)
{
	struct masq_work *w = masq_work();
	struct flow_key key = {};

	if (!w || (w->p.flow.protocol == IPPROTO_TCP && tcp_begins(w->p.flags)))
		return false;
	if (masq_is_noted(w, &w->p.flow))
		return true;
	if (w->egress)
		return false;
	key.saddr = w->p.flow.saddr;
	key.sport = w->p.flow.sport;
	key.protocol = w->p.flow.protocol;
	key.family = w->p.flow.family;
	return masq_is_noted(w, &key);
}

/*
 * For a moment when masquerade begins flows may be whose translation is somebody else's, and for a
 * while connections.
 */
static __always_inline bool masq_is_adopting(const struct masq_work *w)
{
	const struct masquerade_learning *learning;
	const struct masquerade_state *state;
	__u64 now = bpf_ktime_get_ns();
	__u32 zero = 0;

	if (w->known || (w->p.flow.protocol == IPPROTO_TCP && tcp_begins(w->p.flags)))
		return false;
	learning = bpf_map_lookup_elem(&masq_learning, &zero);
	if (learning && learning->until > now)
		return true;
	if (w->p.flow.protocol != IPPROTO_TCP)
		return false;
	state = bpf_map_lookup_elem(&masq_states, &zero);
	return state && state->adopt_until > now / 1000000000ULL;
}

/*
 * Whether a packet without a flow is to begin one; else the verdict. One in the middle of a
 * connection does: its remote says then that there is none, and both ends learn.
 */
static __always_inline int masq_may_begin(const struct masq_work *w)
{
	if (w->p.kind == XLAT_ERROR)
		return MASQ_DROP_NO_FLOW;
	if (masq_is_inbound())
		return MASQ_PASS_INBOUND;
	if (masq_is_adopting(w))
		return MASQ_PASS_INBOUND;
	if (w->p.kind == XLAT_ECHO_ODD)
		return MASQ_DROP_NO_FLOW;
	if (w->p.flags & TCP_RST || (w->p.flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
		return MASQ_DROP_NO_FLOW;
	return MASQ_FINE;
}

static __always_inline void masq_count_bound(const struct masq_work *w)
{
	__u32 program = w->egress ? MASQ_TO_NET : MASQ_FROM_POD;
	struct masquerade_counts *counts = bpf_map_lookup_elem(&masq_counts, &program);

	if (counts)
		counts->bound++;
}

/* Begins a flow from the address that the routes prefer. MASQ_FINE, or the verdict. */
__noinline int masq_begin_flow(struct __sk_buff *skb)
{
	struct masq_work *w = masq_work();
	struct masquerade_decision *d = w ? masq_decision(w) : NULL;
	struct masquerade_source *source;
	int result;

	if (!w || !d)
		return MASQ_DROP_FULL;
	result = masq_may_begin(w);
	if (result != MASQ_FINE)
		return result;
	source = masq_source(d->source);
	if (!source)
		return MASQ_DROP_SOURCE;
	if (!masq_may_bind(w))
		return MASQ_DROP_RATE;
	w->p.to = source->address;
	w->search.source = d->source;
	w->search.generation = d->generation;
	w->search.ifindex = d->tx_ifindex;
	result = masq_bind(skb, false);
	if (!masq_is_bound(result))
		result = masq_bind(skb, true);
	if (!masq_is_bound(result))
		return result == MASQ_TAKEN ? MASQ_DROP_PORTS : MASQ_DROP_FULL;
	if (result == MASQ_BOUND)
		masq_count_bound(w);
	return MASQ_FINE;
}

/*
 * Whether the flow that was found can't be gone on with: its address has gone, its time is over, or
 * it goes another way now, where packets with that address may not be answered.
 */
static __always_inline bool masq_is_over(const struct masq_work *w,
					 const struct masquerade_decision *d,
					 const struct nat_life *life)
{
	if (w->search.stale)
		return true;
	if (unlikely(w->search.ifindex != d->tx_ifindex && w->search.source != d->source))
		return true;
	return masq_expired(life, w->p.flow.protocol, w->search.now);
}

/* Notes a packet of the client's: it confirms the flow if the remote has answered. */
static __always_inline void masq_client_seen(const struct masq_work *w, struct nat_life *life)
{
	__u8 more = masq_marks(w);

	/* The same ports for another connection. */
	if (tcp_begins(w->p.flags) && nat_is_closing(life->client, life->backend)) {
		life->client = 0;
		life->backend = 0;
	}
	if (!(w->p.flags & TCP_SYN) && life->backend & NAT_ANSWERED)
		more |= NAT_ANSWERED;
	if (masq_independent && life->seen != w->search.now)
		masq_mapping_seen(w->search.source);
	masq_note(life, &life->client, more, w->search.now);
}

/* Takes the translation of the flow that was found. False: the flow is over. */
static __always_inline bool masq_go_on(struct masq_work *w, const struct masquerade_decision *d)
{
	struct masquerade_source *source = masq_source(w->search.source);
	struct nat_life *life = masq_life(w);

	if (unlikely(!source || !life || masq_is_over(w, d, life)))
		return false;
	w->p.to = source->address;
	if (likely(w->p.kind != XLAT_ERROR))
		masq_client_seen(w, life);
	return true;
}

/* Finds the packet's translation, or makes it. MASQ_FINE, or the verdict. */
static __always_inline int masq_translation(struct __sk_buff *skb, struct masq_work *w,
					    const struct masquerade_decision *d)
{
	bool found = masq_find(w, hash_flow(&w->p.flow, masq_seed()));
	int result = MASQ_FINE;

	if (unlikely(found && !masq_go_on(w, d))) {
		masq_forget();
		w->known = 1;
		found = false;
	}
	if (unlikely(!found))
		result = masq_begin_flow(skb);
	w->p.to_port = w->search.port;
	return result;
}

/* Writes a pod's packet that is to go as the decision says. */
static __always_inline __u32 masq_depart(struct __sk_buff *skb, struct masq_work *w,
					 struct masquerade_decision *d)
{
	__u32 verdict = d->verdict;
	int result;

	if (unlikely(w->p.problem != XLAT_FINE))
		return MASQ_DROP_MALFORMED + w->p.problem;
	if (verdict < MASQ_STACK) {
		if (unlikely(w->p.ip.ttl <= 1))
			return MASQ_PASS_TTL;
		if (unlikely(d->mtu && w->p.length > d->mtu))
			return MASQ_PASS_MTU;
	}
	result = masq_translation(skb, w, d);
	if (result != MASQ_FINE)
		return result;
	if (unlikely(w->p.ip.fragment))
		xlat_learn_fragment();
	if (masq_write_out(skb, verdict == MASQ_SENT, verdict < MASQ_STACK))
		return MASQ_DROP_WRITE;
	return verdict;
}

/* For a packet that may be a pod's. `egress`: it is about to leave. Returns the verdict. */
static __always_inline __u32 masq_out(struct __sk_buff *skb, const __u32 l3, const bool egress)
{
	struct masq_work *w = masq_work();
	struct masquerade_decision *d;

	if (!w || skb->vlan_present || (!egress && skb->pkt_type))
		return MASQ_PASS_OTHER;
	w->egress = egress;
	w->rx_ifindex = egress ? skb->ingress_ifindex : skb->ifindex;
	if (!masq_parse(skb, w, l3, true))
		return MASQ_PASS_OTHER;
	w->rule = masq_rule_of(w);
	if (w->rule == MASQ_NO_RULE)
		return MASQ_PASS_OTHER;
	d = masq_decided(skb, w, true);
	if (!d)
		return MASQ_PASS_OTHER;
	if (d->verdict > MASQ_STACK && d->verdict != MASQ_HAIRPIN)
		return d->verdict;
	return masq_depart(skb, w, d);
}

/*
 * For an ICMP error that the stack has made: about an answer that didn't fit, or had no way to its
 * pod, it quotes the pod's address, which the remote knows nothing of.
 */
static __always_inline __u32 masq_own_error(struct __sk_buff *skb, const __u32 l3)
{
	struct masq_work *w = masq_work();
	struct masquerade_source *source;

	if (!w || !masq_parse(skb, w, l3, true) || w->p.kind != XLAT_ERROR ||
	    w->p.problem != XLAT_FINE || !masq_find(w, hash_flow(&w->p.flow, masq_seed())) ||
	    w->search.stale)
		return MASQ_PASS_LOCAL;
	source = masq_source(w->search.source);
	if (!source)
		return MASQ_PASS_LOCAL;
	w->p.to = source->address;
	w->p.to_port = w->search.port;
	w->decision = 0;
	return masq_write_out(skb, 0, 0) ? MASQ_DROP_WRITE : MASQ_STACK;
}

static __always_inline bool masq_is_own_icmp(struct __sk_buff *skb, const __u32 l3)
{
	bool v4 = skb->protocol == bpf_htons(ETH_P_IP);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *protocol =
		data + l3 +
		(v4 ? offsetof(struct iphdr, protocol) : offsetof(struct ipv6hdr, nexthdr));

	return (void *)(protocol + 1) <= end && *protocol == (v4 ? IPPROTO_ICMP : XLAT_ICMP6);
}

/* For what the stack sends out of the node. What it has made itself isn't a pod's. */
static __always_inline __u32 masq_leave(struct __sk_buff *skb, const __u32 l3)
{
	if (!skb->ingress_ifindex)
		return masq_is_own_icmp(skb, l3) ? masq_own_error(skb, l3) : MASQ_PASS_LOCAL;
	return masq_out(skb, l3, true);
}

#endif
