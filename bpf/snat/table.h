/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of translations. struct nat_flow has its layout and says how entries are
 * published; here they are found, for either side, and given up. allocate.h makes them.
 *
 * Entries are written under a lock of their set and read without one.
 */
#ifndef TOWPATH_SNAT_TABLE_H
#define TOWPATH_SNAT_TABLE_H

#include "lb/flow_table.h"
#include "snat/life.h"
#include "snat/maps.h"
#include "lb/context.h"

/* ---- Keys ------------------------------------------------------------------------- */

/*
 * What differs most comes lowest: one step carries it into all the bits above, and those
 * are what chooses the set.
 */
static __always_inline __u64 nat_key(__be32 last_word, __be16 port, __u8 protocol)
{
	__u64 address = bpf_ntohl(last_word);

	barrier_var(address); /* or all eight bytes are turned round, and masked */
	return hash_step(flow_seed, bpf_ntohs(port) | (__u32)protocol << 16 | address << 24);
}

/* Of what a backend sends: `key`, its address and port. */
static __always_inline __u64 nat_reply_hash(__u64 key, const struct address *backend, __be16 port,
					    __u8 family)
{
	const wide64 *half = (const wide64 *)backend;

	if (family == FAMILY_V6)
		key = hash_step(key, half[0]);
	return hash_step(hash_step(key, half[1]), port);
}

static __always_inline __u8 nat_tag(__u64 hash)
{
	return hash >> 56 ?: 1;
}

/* ---- States ----------------------------------------------------------------------- */

static __always_inline __u8 nat_marks_of(const struct nat *n)
{
	return (n->flags & TCP_FIN ? NAT_FIN : 0) | (n->flags & TCP_RST ? NAT_RST : 0);
}

/* What a packet of the client's adds to its own: it confirms the flow if the backend has answered. */
static __always_inline __u8 nat_client_marks(const struct nat *n, const struct nat_life *life)
{
	__u8 answered = life->backend & NAT_ANSWERED;

	if (likely(!(n->flags & TCP_EDGES)))
		return answered;
	return nat_marks_of(n) | (n->flags & TCP_SYN ? 0 : answered);
}

static __always_inline void nat_seen(struct nat_life *life, __u8 *marks, __u8 more, __u16 now)
{
	if (life->seen != now)
		life->seen = now;
	if (more & ~*marks)
		*marks |= more;
}

/* ---- The client's side ------------------------------------------------------------ */

/* How many addresses and ports there are to choose from. */
static __always_inline __u32 nat_choices(const struct lb_ctx *lb)
{
	return (lb->pkt.flow.family == FAMILY_V4 ? nat_sources4 : nat_sources6) * nat_ports;
}

/* Returns how many addresses and ports there are. */
static __always_inline __u32 nat_begin(const struct lb_ctx *lb, struct nat *n)
{
	__u32 all = nat_choices(lb);

	n->search.keyed = hash_step(lb->hash, flow_seed);
	n->search.forward_tag = nat_tag(n->search.keyed);
	n->search.first = hash_scale(n->search.keyed, all);
	/* A few are gone through one after the other, so that none is left out. */
	n->search.stride = all > NAT_TRIES ? 1 + hash_scale(n->search.keyed >> 32, all - 1) : 1;
	n->search.now = lb->jiffies >> NAT_SEEN_SHIFT;
	n->search.way = NAT_WAYS;
	return all;
}

/* Makes `number` of all addresses and ports the candidate. */
static __always_inline void nat_candidate(const struct lb_ctx *lb, struct nat *n, __u32 number)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	__u32 source = 0;

	n->search.number = number;
	if ((v4 ? nat_sources4 : nat_sources6) > 1) {
		source = number / nat_ports;
		number -= source * nat_ports;
	}
	n->search.port = bpf_htons(nat_port_first + number);
	n->search.source = v4 ? source : NAT_SOURCES + source;
	n->search.saddr = nat_addresses[n->search.source % (2 * NAT_SOURCES)].word[3];
	n->search.key = nat_key(n->search.saddr, n->search.port, lb->pkt.flow.protocol);
	n->search.set = n->search.key & nat_mask;
}

/* The candidate after this one. */
static __always_inline __u32 nat_next(const struct lb_ctx *lb, const struct nat *n)
{
	__u32 all = nat_choices(lb), number = n->search.number + n->search.stride;

	return number >= all ? number - all : number;
}

/* Whether its ports, both at once, and what the candidate adds to them, are an entry's. */
static __always_inline bool nat_is_candidate(const struct nat_flow *e, const struct flow_key *flow,
					     const struct nat *n)
{
	return *(const wide32 *)&e->client_port == *(const wide32 *)&flow->sport &&
	       e->port == n->search.port && e->source == n->search.source &&
	       e->protocol == flow->protocol;
}

/* Whether an entry is the client's flow, translated to the candidate, which has a family. */
static __always_inline bool nat_is_flow(const struct nat_flow *e, const struct flow_key *flow,
					const struct nat *n)
{
	if (!nat_is_candidate(e, flow, n))
		return false;
	/* Or the compiler compares everything at once, which costs those that differ. */
	asm volatile("");
	if (flow->family == FAMILY_V4)
		return e->client.word[3] == flow->saddr.word[3] &&
		       e->vip.word[3] == flow->daddr.word[3];
	return address_equal(&e->client, &flow->saddr) && address_equal(&e->vip, &flow->daddr);
}

/* Looks for the flow in the candidate's set: returns its state, NULL if it isn't there. */
static __always_inline struct nat_life *nat_look(const struct lb_ctx *lb, struct nat *n,
						 struct nat_head *head)
{
	__u64 matches = match_tags(*(volatile __u64 *)&head->forward, n->search.forward_tag);
	__u32 at = n->search.set;
	struct nat_set *set = matches ? bpf_map_lookup_elem(&nat_flows, &at) : NULL;

	if (!set)
		return NULL;
#pragma clang loop unroll(disable)
	for (__u32 way = 0; way < NAT_WAYS; way++, matches >>= 8) {
		const struct nat_flow *e = &set->way[way];
		__u64 ref;

		if (!(matches & 0x80))
			continue;
		barrier_var(e); /* or it is made of set and way again for each field */
		ref = *(volatile __u64 *)&e->ref;
		if (!ref || !nat_is_flow(e, &lb->pkt.flow, n) || !nat_is_whole(head, way))
			continue;
		n->handle = e->handle;
		n->backend_port = e->backend_port;
		barrier();
		if (*(volatile __u64 *)&e->ref != ref)
			continue;
		n->search.ref = ref;
		n->search.way = way;
		return &head->life[way];
	}
	return NULL;
}

/*
 * Makes candidate `i` the one, and looks for the flow there. Global, so that the verifier
 * looks at it once, and not at every way through all candidates.
 */
__noinline int nat_look_at(__u32 slot, __u32 i)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct nat_head *head;

	if (!lb || !n)
		return 0;
	nat_candidate(lb, n, i ? nat_next(lb, n) : n->search.first);
	head = bpf_map_lookup_elem(&nat_heads, &n->search.set);
	if (!head)
		return 0;
	if (!i) {
		n->search.home = n->search.set;
		n->search.depth = *(volatile __u8 *)&head->reach;
	}
	return nat_look(lb, n, head) != NULL;
}

/* Finds the client's flow. */
static __always_inline bool nat_find(struct lb_ctx *lb, struct nat *n)
{
	nat_begin(lb, n);
	if (likely(nat_look_at(lb->slot, 0)))
		return true;
	for (__u32 i = 1; i < NAT_TRIES && i <= n->search.depth; i++) {
		if (nat_look_at(lb->slot, i))
			return true;
	}
	return false;
}

/* Where the entry that was found keeps its state, in the head of its set. */
static __always_inline struct nat_life *nat_life_in(struct nat_head *head, const struct nat *n)
{
	return head && n->search.way < NAT_WAYS ? &head->life[n->search.way] : NULL;
}

static __always_inline struct nat_life *nat_life_of(const struct nat *n)
{
	return nat_life_in(bpf_map_lookup_elem(&nat_heads, &n->search.set), n);
}

/*
 * Whether a packet that comes for the entry found begins another flow: the one that it was for is
 * over or, of a SYN, was never established. `backend`: its; one that takes new flows keeps it then.
 */
static __always_inline bool nat_begins_anew(const struct lb_ctx *lb, const struct nat *n,
					    const struct nat_life *life,
					    const struct backend *backend)
{
	__u8 protocol = lb->pkt.flow.protocol;
	__u16 age;

	if (!life || (protocol == IPPROTO_TCP && !tcp_begins(n->flags)))
		return false;
	age = nat_age(n->search.now, life->seen);
	if (age > nat_allowed(protocol, life->client, life->backend, n->timeout))
		return true;
	if (protocol != IPPROTO_TCP)
		return false;
	if (nat_is_closing(life->client, life->backend))
		return true;
	return (!(life->client & NAT_ANSWERED) ||
		age > flow_idle >> (NAT_SEEN_SHIFT - FLOW_SEEN_SHIFT)) &&
	       !takes_flows(backend);
}

/* Has the flow that was found be remembered for as long as its service says by now. */
static __always_inline void nat_note_timeout(const struct nat *n)
{
	__u32 at = n->search.set;
	struct nat_set *set = bpf_map_lookup_elem(&nat_flows, &at);

	if (set && n->search.way < NAT_WAYS && set->way[n->search.way].timeout != n->timeout)
		set->way[n->search.way].timeout = n->timeout;
}

/* Notes a packet of the client's. */
static __always_inline void nat_client_seen(const struct lb_ctx *lb, const struct nat *n,
					    struct nat_life *life)
{
	if (!life)
		return;
	if (unlikely(lb->pkt.flow.protocol == IPPROTO_UDP))
		nat_note_timeout(n);
	nat_seen(life, &life->client, nat_client_marks(n, life), n->search.now);
}

/* Gives up the entry that was found, unless it is another's by now. */
__noinline int nat_forget(__u32 slot)
{
	struct nat *n = nat_of(slot);
	struct nat_head *head;
	struct nat_set *set;
	struct nat_lock *lock;
	__u32 way;

	if (!n)
		return 0;
	head = bpf_map_lookup_elem(&nat_heads, &n->search.set);
	set = bpf_map_lookup_elem(&nat_flows, &n->search.set);
	lock = bpf_map_lookup_elem(&nat_locks, &n->search.set);
	way = n->search.way;
	if (!head || !set || !lock || way >= NAT_WAYS)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (set->way[way].ref == n->search.ref)
		nat_clear(head, &set->way[way], way);
	bpf_spin_unlock(&lock->lock);
	return 0;
}

/* ---- The backend's side ----------------------------------------------------------- */

/* Whether what was copied from an entry fits the packet, whose source must be its backend. */
static __always_inline bool nat_is_reply(const struct nat_flow *e, const struct flow_key *flow)
{
	return e->backend_port == flow->sport && e->port == flow->dport &&
	       e->protocol == flow->protocol;
}

/* Whether an entry's source is the address that the packet was sent to. */
static __always_inline bool nat_is_from(__u8 number, const struct flow_key *flow)
{
	const volatile struct address *source = &nat_addresses[number % (2 * NAT_SOURCES)];

	if (number / NAT_SOURCES != (flow->family == FAMILY_V6) ||
	    source->word[3] != flow->daddr.word[3])
		return false;
	return flow->family == FAMILY_V4 ||
	       (source->word[2] == flow->daddr.word[2] && source->word[1] == flow->daddr.word[1] &&
		source->word[0] == flow->daddr.word[0]);
}

/*
 * Finds what a backend's packet is a reply to, and translates it back: fills saddr, sport,
 * daddr, dport and handle. Returns the head of its set, NULL if it is none.
 */
static __always_inline struct nat_head *nat_look_reply(const struct lb_ctx *lb, struct nat *n)
{
	const struct flow_key *flow = &lb->pkt.flow;
	__u64 key = nat_key(flow->daddr.word[3], flow->dport, flow->protocol), reply, matches;
	__u32 at = key & nat_mask;
	struct nat_head *head = bpf_map_lookup_elem(&nat_heads, &at);
	struct nat_set *set;

	n->search.key = key;
	n->search.set = key & nat_mask;
	reply = nat_reply_hash(key, &flow->saddr, flow->sport, flow->family);
	if (!head)
		return NULL;
	matches = match_tags(*(volatile __u64 *)&head->reply, nat_tag(reply));
	set = matches ? bpf_map_lookup_elem(&nat_flows, &at) : NULL;
	if (!set)
		return NULL;
#pragma clang loop unroll(disable)
	for (__u32 way = 0; way < NAT_WAYS; way++, matches >>= 8) {
		const struct nat_flow *e = &set->way[way];
		__u8 source;
		__u64 ref;

		if (!(matches & 0x80))
			continue;
		ref = *(volatile __u64 *)&e->ref;
		if (!ref || (__u32)ref != (__u32)reply || !nat_is_reply(e, flow))
			continue;
		source = e->source;
		n->tuple.saddr = e->vip;
		n->tuple.daddr = e->client;
		n->tuple.sport = e->vip_port;
		n->tuple.dport = e->client_port;
		n->handle = e->handle;
		if (!nat_is_from(source, flow))
			continue;
		barrier();
		if (*(volatile __u64 *)&e->ref != ref)
			continue;
		n->search.way = way;
		return head;
	}
	return NULL;
}

/* The same: 1 if it is one. Global, as nat_look_at(). */
__noinline int nat_find_reply(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);

	return lb && n && nat_look_reply(lb, n);
}

static __always_inline void nat_backend_seen(const struct lb_ctx *lb, const struct nat *n,
					     struct nat_life *life)
{
	if (life)
		nat_seen(life, &life->backend, NAT_ANSWERED | nat_marks_of(n),
			 lb->jiffies >> NAT_SEEN_SHIFT);
}

#endif
