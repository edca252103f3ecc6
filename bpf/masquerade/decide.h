/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is to be done with a flow's packets, and the way that they go: the rules, the kernel's FIB
 * with the source that it prefers, and the device. Each CPU keeps until the next jiffy which rule a
 * pod's packets have, and which way there is for a flow: so policy rules that look at ports, and
 * the choice among equal ways, are the kernel's. Where there are none, one way does for all that is
 * sent to an address.
 */
#ifndef TOWPATH_MASQUERADE_DECIDE_H
#define TOWPATH_MASQUERADE_DECIDE_H

#include "masquerade/parse.h"
#include "net/fib.h"

enum masq_fib {
	FIB_LOOKUP_OUTPUT = 1 << 1, /* BPF_FIB_LOOKUP_OUTPUT */
	FIB_ANY_LENGTH = 1, /* has the kernel tell what fits, and say nothing of this packet */
	MASQ_DEPTH = 32,    /* bits in front of a prefix */
	MASQ_OUT = 1 << 8,  /* of a way's key */
};

static __always_inline __u32 *masq_prefix(void *v4, void *v6, __u32 of,
					  const struct address *address, __u8 family)
{
	if (family == FAMILY_V4) {
		struct masquerade_prefix4 key = { .bits = MASQ_DEPTH + 32,
						  .of = of,
						  .address = address->word[3] };

		return bpf_map_lookup_elem(v4, &key);
	} else {
		struct masquerade_prefix6 key = { .bits = MASQ_DEPTH + 128,
						  .of = of,
						  .address = *address };

		return bpf_map_lookup_elem(v6, &key);
	}
}

/* The rule for packets of a pod's that come in by a device; NULL: it is none's. */
static __always_inline __u32 *masq_rule(__u32 ifindex, const struct address *pod, __u8 family)
{
	return masq_prefix(&masq_pods4, &masq_pods6, ifindex, pod, family);
}

static __always_inline bool masq_spared(__u32 rule, const struct address *remote, __u8 family)
{
	return masq_prefix(&masq_spared4, &masq_spared6, rule, remote, family);
}

/* Destinations that no packet is forwarded to, though the FIB has a way (RFC 1122, RFC 4291). */
static __always_inline bool masq_unroutable(const struct address *to, __u8 family)
{
	__u32 first = bpf_ntohl(to->word[family == FAMILY_V4 ? 3 : 0]);

	if (family == FAMILY_V4)
		return first >> 28 == 0xe || first == 0xffffffff || first >> 24 == 0 ||
		       first >> 24 == 127;
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||
	       (!to->word[0] && !to->word[1] && (!to->word[2] || to->word[2] == bpf_htonl(0xffff)));
}

static __always_inline void masq_question(const struct masq_work *w, struct bpf_fib_lookup *fib)
{
	fib->tot_len = FIB_ANY_LENGTH;
	fib->l4_protocol = w->p.flow.protocol;
	fib->sport = w->p.flow.sport;
	fib->dport = w->p.flow.dport;
	fib_addresses(fib, w->p.flow.family, &w->p.flow.saddr, &w->p.flow.daddr);
	if (w->p.flow.family == FAMILY_V4)
		fib->tos = w->p.ip.tos & ~3; /* without ECN */
	else
		fib->flowinfo = bpf_htonl((__u32)w->p.ip.tos << 20);
}

/* Takes the way from the kernel's answer. */
static __always_inline void masq_take_way(struct masquerade_decision *d,
					  const struct bpf_fib_lookup *fib,
					  const struct masquerade_device *device)
{
	__u32 mtu = fib->mtu_result;

	d->tx_ifindex = fib->ifindex;
	/* Before 5.12 the kernel leaves what was asked. */
	d->mtu = mtu == FIB_ANY_LENGTH || (device && device->mtu < mtu) ? (device ? device->mtu : 0)
									: mtu;
	__builtin_memcpy(d->dmac, fib->dmac, 6);
	__builtin_memcpy(d->smac, fib->smac, 6);
	d->next_family = fib->family;
	if (fib->family == AF_INET)
		d->next = (struct address){ .word[3] = fib->ipv4_dst };
	else
		__builtin_memcpy(&d->next, fib->ipv6_dst, 16);
}

/* By what the agent has read of the routes. */
static __always_inline __u32 masq_routed_source(const struct masq_work *w,
						const struct masquerade_device *device,
						__u32 ifindex)
{
	__u32 *number = masq_prefix(&masq_routes4, &masq_routes6, ifindex, &w->p.flow.daddr,
				    w->p.flow.family);

	if (number)
		return *number;
	return w->p.flow.family == FAMILY_V4 ? device->source4 : device->source6;
}

/* The number of the source that packets get. `found`: the FIB has an answer. */
static __always_inline __u32 masq_preferred(const struct masq_work *w,
					    const struct bpf_fib_lookup *fib, bool found,
					    const struct masquerade_device *device, __u32 ifindex)
{
	struct address source = {};

	if (masq_own_routes || !found) /* by whatever rule, the stack has its way */
		return masq_routed_source(w, device, ifindex);
	if (w->p.flow.family == FAMILY_V4)
		source.word[3] = fib->ipv4_src;
	else
		__builtin_memcpy(&source, fib->ipv6_src, 16);
	return masq_number(&source, w->p.flow.family);
}

static __always_inline __u32 masq_refusal(int result)
{
	switch (result) {
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return MASQ_PASS_LOCAL;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return MASQ_PASS_WAY;
	default:
		return MASQ_PASS_NO_ROUTE;
	}
}

/* ---- Of pods ---------------------------------------------------------------------- */

/* For the way out: by which device, from which address. Returns the verdict. */
static __always_inline __u32 masq_way_out(struct __sk_buff *skb, const struct masq_work *w,
					  struct masquerade_decision *d)
{
	struct bpf_fib_lookup fib = {};
	struct masquerade_device *device;
	struct masquerade_source *source;
	__u32 number, ifindex, flags;
	int result;

	masq_question(w, &fib);
	fib.ifindex = skb->ifindex;
	flags = (masq_own_routes ? 0 : FIB_LOOKUP_SOURCE) | (w->egress ? FIB_LOOKUP_OUTPUT : 0);
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), flags);
	if (!w->egress && !fib_found(result))
		return masq_refusal(result);
	ifindex = w->egress ? skb->ifindex : fib.ifindex;
	device = bpf_map_lookup_elem(&masq_devices, &ifindex);
	if (!device)
		return MASQ_DROP_DEVICE;
	number = masq_preferred(w, &fib, fib_found(result), device, ifindex);
	masq_take_way(d, &fib, device);
	d->tx_ifindex = ifindex;
	if (number >= MASQ_SOURCES)
		return MASQ_DROP_SOURCE;
	source = masq_source(number);
	if (!source || source->family != w->p.flow.family)
		return MASQ_DROP_SOURCE;
	d->source = number;
	d->generation = source->generation;
	if (w->egress)
		return MASQ_STACK;
	if (!(device->flags & MASQ_DEVICE_ETHERNET))
		return MASQ_PASS_WAY;
	return result == BPF_FIB_LKUP_RET_SUCCESS ? MASQ_SENT : MASQ_NEIGHBOUR;
}

/*
 * Whether a pod's packet is to an address and port that a pod is translated to (RFC 4787, REQ-9). It
 * then gets that address as its source too.
 */
static __always_inline bool masq_is_hairpin(const struct masq_work *w,
					    struct masquerade_decision *d)
{
	struct masquerade_endpoint key = {
		.address = w->p.flow.daddr,
		.port = w->p.flow.dport,
		.protocol = w->p.flow.protocol,
		.family = w->p.flow.family,
	};
	const struct masquerade_mapping *m;
	const struct masquerade_source *source;

	if (w->egress || w->p.kind != XLAT_PLAIN || !masq_is_own_port(w->p.flow.dport))
		return false;
	key.source = masq_number(&w->p.flow.daddr, w->p.flow.family);
	source = masq_source(key.source);
	if (key.source >= MASQ_SOURCES || !source)
		return false;
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	if (!m || masq_mapping_over(m, w->search.now))
		return false;
	d->source = key.source;
	d->generation = source->generation;
	d->tx_ifindex = 0;
	d->mtu = 0;
	return true;
}

static __always_inline __u32 masq_verdict_out(struct __sk_buff *skb, const struct masq_work *w,
					      struct masquerade_decision *d)
{
	__u32 verdict;

	if (masq_unroutable(&w->p.flow.daddr, w->p.flow.family))
		return MASQ_PASS_LOCAL;
	if (masq_spared(w->rule, &w->p.flow.daddr, w->p.flow.family))
		return MASQ_PASS_EXCLUDED;
	verdict = masq_way_out(skb, w, d);
	if (masq_independent && verdict == MASQ_PASS_LOCAL && masq_is_hairpin(w, d))
		return MASQ_HAIRPIN;
	return verdict;
}

/* ---- Of answers ------------------------------------------------------------------- */

/* For the way to the pod. What the FIB refuses the stack refuses too, and says so. */
static __always_inline __u32 masq_verdict_in(struct __sk_buff *skb, const struct masq_work *w,
					     struct masquerade_decision *d)
{
	struct bpf_fib_lookup fib = {};
	struct masquerade_device *device;
	int result;

	if (masq_through_stack)
		return MASQ_STACK;
	masq_question(w, &fib);
	fib.ifindex = skb->ifindex;
	result = fib_lookup(skb, &fib, false);
	if (!fib_found(result))
		return MASQ_STACK;
	device = bpf_map_lookup_elem(&masq_devices, &fib.ifindex);
	masq_take_way(d, &fib, device);
	if (!device || !(device->flags & MASQ_DEVICE_ETHERNET))
		return MASQ_STACK;
	if (device->flags & MASQ_DEVICE_PEER)
		return MASQ_PEER;
	return result == BPF_FIB_LKUP_RET_SUCCESS ? MASQ_SENT : MASQ_NEIGHBOUR;
}

/* ---- Kept ------------------------------------------------------------------------- */

/* Looks the rule of a pod up, and keeps it. */
__noinline int masq_learn_pod(__u32 at)
{
	struct masq_work *w = masq_work();
	struct masquerade_pod *pod = bpf_map_lookup_elem(&masq_known_pods, &at);
	__u32 *rule;

	if (!w || !pod)
		return MASQ_NO_RULE;
	rule = masq_rule(w->rx_ifindex, &w->p.flow.saddr, w->p.flow.family);
	pod->tick = 0;
	pod->address = w->p.flow.saddr;
	pod->ifindex = w->rx_ifindex;
	pod->family = w->p.flow.family;
	pod->rule = rule ? *rule : MASQ_NO_RULE;
	pod->tick = w->p.jiffies;
	return pod->rule;
}

/* The rule for the packet; MASQ_NO_RULE: it is no pod's. Pods' addresses are next to each other. */
static __always_inline __u32 masq_rule_of(const struct masq_work *w)
{
	__u32 at = bpf_get_smp_processor_id() * MASQ_KNOWN_PODS +
		   bpf_ntohl(w->p.flow.saddr.word[3]) % MASQ_KNOWN_PODS;
	const struct masquerade_pod *pod = bpf_map_lookup_elem(&masq_known_pods, &at);

	if (likely(pod && pod->tick == (__u32)w->p.jiffies && pod->ifindex == w->rx_ifindex &&
		   pod->family == w->p.flow.family &&
		   address_equal(&pod->address, &w->p.flow.saddr)))
		return pod->rule;
	return masq_learn_pod(at);
}

/* Decides, and keeps it. `out`: for a pod's packet. */
__noinline int masq_decide(struct __sk_buff *skb, __u32 out)
{
	struct masq_work *w = masq_work();
	struct masquerade_decision *d = w ? masq_decision(w) : NULL;

	if (!w || !d)
		return MASQ_PASS_OTHER;
	d->tick = 0;
	d->flow = w->way;
	d->rx_ifindex = w->egress ? ~skb->ifindex : skb->ifindex;
	d->verdict = out ? masq_verdict_out(skb, w, d) : masq_verdict_in(skb, w, d);
	d->tick = w->p.jiffies;
	return 0;
}

static __always_inline bool masq_same_flow(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

/*
 * Which flows go one way: enum masquerade_alike, as of IPv4. A pod's packet to the node itself may
 * be one to another pod's port, if ports are pods' own.
 */
static __always_inline __u32 masq_alike(__u8 family)
{
	__u32 zero = 0;
	const struct masquerade_state *state = bpf_map_lookup_elem(&masq_states, &zero);

	if (masq_independent || !state)
		return 0;
	return family == FAMILY_V4 ? state->alike : state->alike / MASQ_ALIKE6;
}

/* Makes w->way what tells the packet's way apart. */
static __always_inline void masq_name_way(struct masq_work *w, const bool out)
{
	__u32 alike = masq_alike(w->p.flow.family);
	bool v4 = w->p.flow.family == FAMILY_V4;

	w->way = w->p.flow;
	w->way._reserved = (v4 ? w->p.ip.tos & ~3 : w->p.ip.tos) | (out ? MASQ_OUT : 0);
	if (!(alike & MASQ_ALIKE4))
		return;
	w->way.sport = 0;
	w->way.dport = 0;
	w->way.protocol = 0;
	if (alike & MASQ_ALIKE_SOURCES4)
		w->way.saddr = (struct address){ .word[3] = w->rule };
}

static __always_inline bool masq_holds(const struct masquerade_decision *d,
				       const struct masq_work *w, __u32 device)
{
	return d->tick == (__u32)w->p.jiffies && d->rx_ifindex == device &&
	       masq_same_flow(&d->flow, &w->way);
}

/* What is to be done with the packet: in one of two places, or decided now. NULL never comes. */
static __always_inline struct masquerade_decision *masq_decided(struct __sk_buff *skb,
								struct masq_work *w, const bool out)
{
	struct masquerade_decision *d, *other;
	__u32 device = w->egress ? ~skb->ifindex : skb->ifindex, at;
	__u64 hash;

	masq_name_way(w, out);
	hash = hash_flow(&w->way, masq_seed());
	at = bpf_get_smp_processor_id() * MASQ_DECISIONS + (hash >> 16) % MASQ_DECISIONS;
	w->decision = at;
	d = masq_decision(w);
	if (!d)
		return NULL;
	if (likely(masq_holds(d, w, device)))
		return d;
	at ^= 1;
	other = bpf_map_lookup_elem(&masq_decisions, &at);
	if (!other)
		return NULL;
	if (masq_holds(other, w, device) || d->tick == (__u32)w->p.jiffies) {
		w->decision = at;
		d = other;
		if (masq_holds(d, w, device))
			return d;
	}
	masq_decide(skb, out);
	return d;
}

#endif
