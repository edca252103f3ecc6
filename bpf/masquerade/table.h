/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of flows: found by either side, and given up. bind.h makes entries. They are written
 * under a lock of their set and read without one; abi/snat.h says how they are published.
 */
#ifndef TOWPATH_MASQUERADE_TABLE_H
#define TOWPATH_MASQUERADE_TABLE_H

#include "masquerade/maps.h"
#include "net/address.h"
#include "net/tags.h"
#include "snat/heads.h"
#include "snat/life.h"

/* ---- Keys ------------------------------------------------------------------------- */

/* Of all that a remote's port has with any translated port. */
static __always_inline __u64 masq_base(const struct address *remote, __be16 port, __u8 protocol,
				       __u8 family)
{
	const __u64 *half = (const __u64 *)remote;
	__u64 base = masq_seed() ^ (family == FAMILY_V6 ? hash_step(family, half[0]) : 0);

	return hash_step(hash_step(base, half[1]), port | (__u32)protocol << 16);
}

static __always_inline __u64 masq_key(__u64 base, __be16 port)
{
	return hash_step(base, bpf_ntohs(port));
}

static __always_inline __u64 masq_reply_hash(__u64 key, const struct address *source, __u8 family)
{
	const __u64 *half = (const __u64 *)source;

	if (family == FAMILY_V6)
		key = hash_step(key, half[0]);
	return hash_step(key, half[1]);
}

/*
 * A flow's own way in its set, which both directions know: an entry is found there at once. The way
 * is another one if that was taken when the flow began.
 */
static __always_inline __u32 masq_own_way(__u64 key)
{
	return key >> 61;
}

static __always_inline __u8 masq_tag(__u64 hash)
{
	return hash >> 56 ?: 1;
}

/* ---- Life ------------------------------------------------------------------------- */

static __always_inline __u8 masq_marks(const struct masq_work *w)
{
	return (w->p.flags & TCP_FIN ? NAT_FIN : 0) | (w->p.flags & TCP_RST ? NAT_RST : 0);
}

/* How long such an entry is kept after its last packet. */
static __always_inline __u32 masq_allowed(__u8 protocol, __u8 client, __u8 backend)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return nat_allowed(protocol, client, backend, 0);
	case 132: /* SCTP, whose heartbeats are seen both ways */
		return client & NAT_ANSWERED ? nat_tcp_open : nat_tcp_new;
	default: /* echo */
		return nat_udp_new;
	}
}

static __always_inline bool masq_expired(const struct nat_life *life, __u8 protocol, __u16 now)
{
	return nat_age(now, life->seen) > masq_allowed(protocol, life->client, life->backend);
}

static __always_inline struct nat_life *masq_life(const struct masq_work *w)
{
	struct masq_set *set = bpf_map_lookup_elem(&masq_flows, &w->search.set);

	return set && w->search.way < NAT_WAYS ? &set->way[w->search.way].life : NULL;
}

static __always_inline void masq_note(struct nat_life *life, __u8 *marks, __u8 more, __u16 now)
{
	if (life->seen != now)
		life->seen = now;
	if (more & ~*marks)
		*marks |= more;
}

static __always_inline bool masq_is_stale(const struct masquerade_flow *e)
{
	const struct masquerade_source *source = masq_source(e->source);

	return !source || *(const volatile __u16 *)&source->generation != e->generation;
}

/* ---- The client's side ------------------------------------------------------------ */

/*
 * Ports to try. With endpoint-independent mapping they follow from the client's address and port
 * alone, else from the whole flow. SCTP keeps its port: its checksum covers it, and is not made anew.
 */
static __always_inline void masq_begin(struct masq_work *w, __u64 hash)
{
	struct masq_search *s = &w->search;
	__u64 chooser;

	s->keyed = hash_step(hash, masq_seed());
	s->forward_tag = masq_tag(s->keyed);
	s->base =
		masq_base(&w->p.flow.daddr, w->p.flow.dport, w->p.flow.protocol, w->p.flow.family);
	chooser = s->keyed;
	if (masq_independent)
		chooser = hash_step(hash_client(&w->p.flow, masq_seed()),
				    w->p.flow.sport | (__u32)w->p.flow.protocol << 16);
	s->first = hash_scale(chooser, masq_port_count);
	/* So short that all candidates are different, whatever it has in common with the count. */
	s->stride = 1 + hash_scale(chooser >> 32, masq_port_count / NAT_TRIES);
	s->way = NAT_WAYS;
}

/* Makes candidate `i` the one: they are gone through in turn. */
static __always_inline void masq_candidate(struct masq_work *w, __u32 i)
{
	struct masq_search *s = &w->search;

	s->number = i ? s->number + s->stride : s->first;
	if (s->number >= masq_port_count)
		s->number -= masq_port_count;
	s->port = w->p.flow.protocol == 132 ? w->p.flow.sport
					    : bpf_htons(masq_port_first + s->number);
	s->key = masq_key(s->base, s->port);
	s->set = s->key & masq_mask;
	s->own = masq_own_way(s->key);
}

static __always_inline bool masq_is_flow(const struct masquerade_flow *e,
					 const struct flow_key *flow, __be16 port)
{
	return e->client_port == flow->sport && e->port == port && e->protocol == flow->protocol &&
	       e->remote_port == flow->dport && address_equal(&e->client, &flow->saddr) &&
	       address_equal(&e->remote, &flow->daddr);
}

/* Takes what an entry says, if it is the flow's at the candidate's port. */
static __always_inline bool masq_take_entry(struct masq_work *w, const struct masquerade_flow *e,
					    __u32 way)
{
	struct masq_search *s = &w->search;
	__u64 ref = *(volatile __u64 *)&e->ref;

	if (!ref || !masq_is_flow(e, &w->p.flow, s->port))
		return false;
	s->source = e->source;
	s->generation = e->generation;
	s->ifindex = e->ifindex;
	s->stale = masq_is_stale(e);
	barrier();
	if (*(volatile __u64 *)&e->ref != ref)
		return false;
	s->ref = ref;
	s->way = way;
	return true;
}

/* Looks in the candidate's own way. */
static __always_inline bool masq_look_own(struct masq_work *w)
{
	struct masq_set *set = bpf_map_lookup_elem(&masq_flows, &w->search.set);
	__u32 way = w->search.own % NAT_WAYS;

	return set && masq_take_entry(w, &set->way[way], way);
}

/* Looks in all of the candidate's ways. */
static __always_inline bool masq_look(struct masq_work *w, const struct masquerade_head *head)
{
	__u64 forward = *(volatile __u64 *)&head->forward, reply = *(volatile __u64 *)&head->reply;
	__u64 matches = match_tags(forward, w->search.forward_tag) & nat_whole_ways(forward, reply);
	struct masq_set *set = matches ? bpf_map_lookup_elem(&masq_flows, &w->search.set) : NULL;

	if (!set)
		return false;
	for (__u32 way = 0; way < NAT_WAYS; way++, matches >>= 8) {
		if (matches & 0x80 && masq_take_entry(w, &set->way[way], way))
			return true;
	}
	return false;
}

/* Global, so that the verifier looks at it once, and not at every way through all candidates. */
__noinline int masq_look_at(__u32 i)
{
	struct masq_work *w = masq_work();
	struct masquerade_head *head;

	if (!w)
		return 0;
	masq_candidate(w, i);
	head = bpf_map_lookup_elem(&masq_heads, &w->search.set);
	if (!head)
		return 0;
	if (!i) {
		w->search.home = w->search.set;
		w->search.depth = *(volatile __u8 *)&head->reach;
	}
	return masq_look(w, head);
}

/* Finds the client's flow. */
static __always_inline bool masq_find(struct masq_work *w, __u64 hash)
{
	masq_begin(w, hash);
	masq_candidate(w, 0);
	if (likely(masq_look_own(w)))
		return true;
	if (masq_look_at(0))
		return true;
	for (__u32 i = 1; i < NAT_TRIES && i <= w->search.depth; i++) {
		if (masq_look_at(i))
			return true;
	}
	return false;
}

/* Gives up an entry. Under its set's lock. */
static __always_inline void masq_clear(struct masquerade_head *head, struct masquerade_flow *e,
				       __u32 way)
{
	*(volatile __u64 *)&e->ref = 0;
	((volatile __u8 *)&head->forward)[way] = 0;
	((volatile __u8 *)&head->reply)[way] = 0;
}

/* Gives up the entry that was found, unless it is another's by now. */
__noinline int masq_forget(void)
{
	struct masq_work *w = masq_work();
	struct masquerade_head *head;
	struct masq_set *set;
	struct masq_lock *lock;
	__u32 way;

	if (!w)
		return 0;
	head = bpf_map_lookup_elem(&masq_heads, &w->search.set);
	set = bpf_map_lookup_elem(&masq_flows, &w->search.set);
	lock = bpf_map_lookup_elem(&masq_locks, &w->search.set);
	way = w->search.way;
	if (!head || !set || !lock || way >= NAT_WAYS)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (set->way[way].ref == w->search.ref)
		masq_clear(head, &set->way[way], way);
	bpf_spin_unlock(&lock->lock);
	return 0;
}

/* ---- The remote's side ------------------------------------------------------------ */

/* Takes the client from an entry, if it is what the packet is an answer to. */
static __always_inline bool masq_take_reply(struct masq_work *w, const struct masquerade_flow *e,
					    __u32 way, __u32 source, __u32 reply)
{
	const struct flow_key *flow = &w->p.flow;
	__u64 ref = *(volatile __u64 *)&e->ref;

	if (!ref || (__u32)ref != reply || e->remote_port != flow->sport ||
	    e->port != flow->dport || e->protocol != flow->protocol || e->source != source ||
	    masq_is_stale(e) || !address_equal(&e->remote, &flow->saddr))
		return false;
	w->p.to = e->client;
	w->p.to_port = e->client_port;
	barrier();
	if (*(volatile __u64 *)&e->ref != ref)
		return false;
	w->search.way = way;
	return true;
}

/*
 * Finds what a packet to a translated address, whose number is `source`, is an answer to: fills
 * w->p.to and w->p.to_port with the client's. Global, as masq_look_at().
 */
__noinline int masq_find_reply(__u32 source)
{
	struct masq_work *w = masq_work();
	const struct flow_key *flow;
	struct masquerade_head *head;
	struct masq_set *set;
	__u64 reply, matches, key;
	__u32 own;

	if (!w)
		return 0;
	flow = &w->p.flow;
	key = masq_key(masq_base(&flow->saddr, flow->sport, flow->protocol, flow->family),
		       flow->dport);
	w->search.set = key & masq_mask;
	reply = masq_reply_hash(key, &flow->daddr, flow->family);
	set = bpf_map_lookup_elem(&masq_flows, &w->search.set);
	own = masq_own_way(key) % NAT_WAYS;
	if (!set)
		return 0;
	if (likely(masq_take_reply(w, &set->way[own], own, source, reply)))
		return 1;
	head = bpf_map_lookup_elem(&masq_heads, &w->search.set);
	if (!head)
		return 0;
	matches = match_tags(*(volatile __u64 *)&head->reply, masq_tag(reply));
	for (__u32 way = 0; way < NAT_WAYS; way++, matches >>= 8) {
		if (matches & 0x80 && masq_take_reply(w, &set->way[way], way, source, reply))
			return 1;
	}
	return 0;
}

#endif
