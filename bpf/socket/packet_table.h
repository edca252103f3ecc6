/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of pods' flows to services: found by either side, made, and given up. Entries are
 * written under a lock of their set and read without one; abi/snat.h says how they are published.
 */
#ifndef TOWPATH_SOCKET_PACKET_TABLE_H
#define TOWPATH_SOCKET_PACKET_TABLE_H

#include "net/hash.h"
#include "net/tags.h"
#include "snat/life.h"
#include "socket/packet_maps.h"

enum packet_bind_limits {
	PACKET_YOUNG = 4, /* units of nat_life.seen in which an answer may still be on its way */
};

/* How good a way is for a new entry; age comes on top. */
enum packet_rank {
	PACKET_RANK_UNCONFIRMED = 1 << 16,
	PACKET_RANK_EXPIRED = 2 << 16,
	PACKET_RANK_FREE = 3 << 16,
	PACKET_RANK_SAME_PORT = 4 << 16, /* it must go: its answers couldn't be told from ours */
	PACKET_RANK_TAKEN = 5 << 16,
};

enum packet_bound {
	PACKET_NO_ROOM = 0, /* no way in the set, or the port is another's */
	PACKET_BOUND,
	PACKET_FOUND, /* another CPU was faster */
};

/* ---- Keys ------------------------------------------------------------------------- */

static __always_inline __u8 packet_tag(__u64 hash)
{
	return hash >> 56 ?: 1;
}

static __always_inline __u64 packet_base(const struct address *client, __u32 ifindex, __u8 protocol)
{
	return hash_step(hash_address(packet_seed, client), ifindex | (__u64)protocol << 32);
}

static __always_inline __u64 packet_key(__u64 base, __be16 port)
{
	return hash_step(base, bpf_ntohs(port));
}

static __always_inline __u64 packet_reply_hash(__u64 key, const struct address *backend,
					       __be16 port)
{
	return hash_step(hash_address(key, backend), port);
}

/* ---- Life ------------------------------------------------------------------------- */

static __always_inline __u8 packet_marks(const struct packet_work *w)
{
	return (w->p.flags & TCP_FIN ? NAT_FIN : 0) | (w->p.flags & TCP_RST ? NAT_RST : 0);
}

static __always_inline bool packet_expired(const struct packet_flow *e, __u16 now)
{
	struct nat_life life = e->life;

	return nat_age(now, life.seen) >
	       nat_allowed(e->protocol, life.client, life.backend, e->timeout);
}

static __always_inline void packet_note(struct nat_life *life, __u8 *marks, __u8 more, __u16 now)
{
	if (life->seen != now)
		life->seen = now;
	if (more & ~*marks)
		*marks |= more;
}

/* The entry that was found; NULL never comes. */
static __always_inline struct packet_flow *packet_entry(const struct packet_work *w)
{
	struct packet_set *set = bpf_map_lookup_elem(&packet_flows, &w->search.set);

	return set && w->search.way < PACKET_WAYS ? &set->way[w->search.way] : NULL;
}

/* Copies an entry. False: it is another one by now. */
static __always_inline bool packet_take(struct packet_work *w, const struct packet_flow *e,
					__u64 ref, __u32 way)
{
	w->found = *e;
	barrier();
	if (!ref || *(volatile __u64 *)&e->ref != ref)
		return false;
	w->search.ref = ref;
	w->search.way = way;
	return true;
}

/* ---- The client's side ------------------------------------------------------------ */

static __always_inline void packet_begin(struct packet_work *w)
{
	struct packet_search *s = &w->search;
	const struct flow_key *flow = &w->p.flow;

	s->keyed = hash_step(hash_flow(flow, packet_seed), w->ifindex);
	s->forward_tag = packet_tag(s->keyed);
	s->base = packet_base(&flow->saddr, w->ifindex, flow->protocol);
	s->way = PACKET_WAYS;
}

/* Makes port `i` the one. */
static __always_inline void packet_candidate(struct packet_work *w, __u32 i)
{
	struct packet_search *s = &w->search;
	__u32 number = hash_scale(s->keyed >> 24, PACKET_PORT_COUNT) + i * PACKET_STRIDE;

	if (i)
		s->port = bpf_htons(PACKET_PORT_FIRST + number % PACKET_PORT_COUNT);
	else
		s->port = w->p.flow.sport;
	s->set = packet_key(s->base, s->port) & packet_mask;
}

static __always_inline bool packet_is_flow(const struct packet_flow *e, const struct packet_work *w)
{
	const struct flow_key *flow = &w->p.flow;

	return e->client_port == flow->sport && e->vip_port == flow->dport &&
	       e->protocol == flow->protocol && e->ifindex == w->ifindex &&
	       address_equal(&e->vip, &flow->daddr) && address_equal(&e->client, &flow->saddr);
}

/* Looks for the flow at port `i`. Global, so that the verifier looks at it once. */
__noinline int packet_look_at(__u32 i)
{
	struct packet_work *w = packet_work();
	struct packet_head *head;
	struct packet_set *set;
	__u64 matches;

	if (!w)
		return 0;
	packet_candidate(w, i);
	head = bpf_map_lookup_elem(&packet_heads, &w->search.set);
	if (!head)
		return 0;
	if (!i) {
		w->search.home = w->search.set;
		w->search.depth = *(volatile __u8 *)&head->reach;
	}
	matches = match_tags(*(volatile __u64 *)&head->forward, w->search.forward_tag);
	set = matches ? bpf_map_lookup_elem(&packet_flows, &w->search.set) : NULL;
	if (!set)
		return 0;
	for (__u32 way = 0; way < PACKET_WAYS; way++, matches >>= 8) {
		const struct packet_flow *e = &set->way[way];
		__u64 ref = *(volatile __u64 *)&e->ref;

		if (matches & 0x80 && packet_is_flow(e, w) && packet_take(w, e, ref, way))
			return 1;
	}
	return 0;
}

/* Finds the client's flow. */
static __always_inline bool packet_find(struct packet_work *w)
{
	packet_begin(w);
	if (packet_look_at(0))
		return true;
	for (__u32 i = 1; i < PACKET_TRIES && i <= w->search.depth; i++) {
		if (packet_look_at(i))
			return true;
	}
	return false;
}

/* ---- The backend's side ----------------------------------------------------------- */

/* Finds the flow whose ends are w->ends. Global: see packet_look_at(). */
__noinline int packet_find_ends(void)
{
	struct packet_work *w = packet_work();
	const struct packet_ends *ends;
	struct packet_head *head;
	struct packet_set *set;
	__u64 key, reply, matches;

	if (!w)
		return 0;
	ends = &w->ends;
	key = packet_key(packet_base(&ends->client, w->ifindex, w->p.flow.protocol), ends->port);
	w->search.set = key & packet_mask;
	reply = packet_reply_hash(key, &ends->backend, ends->backend_port);
	head = bpf_map_lookup_elem(&packet_heads, &w->search.set);
	if (!head)
		return 0;
	matches = match_tags(*(volatile __u64 *)&head->reply, packet_tag(reply));
	set = matches ? bpf_map_lookup_elem(&packet_flows, &w->search.set) : NULL;
	if (!set)
		return 0;
	for (__u32 way = 0; way < PACKET_WAYS; way++, matches >>= 8) {
		const struct packet_flow *e = &set->way[way];
		__u64 ref = *(volatile __u64 *)&e->ref;

		if (matches & 0x80 && (__u32)ref == (__u32)reply && e->port == ends->port &&
		    e->backend_port == ends->backend_port && e->ifindex == w->ifindex &&
		    e->protocol == w->p.flow.protocol &&
		    address_equal(&e->backend, &ends->backend) &&
		    address_equal(&e->client, &ends->client) && packet_take(w, e, ref, way))
			return 1;
	}
	return 0;
}

/* ---- Entries ---------------------------------------------------------------------- */

/* Gives up the entry that was found, unless it is another's by now. */
__noinline int packet_forget(void)
{
	struct packet_work *w = packet_work();
	struct packet_head *head;
	struct packet_set *set;
	struct packet_lock *lock;
	__u32 way;

	if (!w)
		return 0;
	head = bpf_map_lookup_elem(&packet_heads, &w->search.set);
	set = bpf_map_lookup_elem(&packet_flows, &w->search.set);
	lock = bpf_map_lookup_elem(&packet_locks, &w->search.set);
	way = w->search.way;
	if (!head || !set || !lock || way >= PACKET_WAYS)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (set->way[way].ref == w->search.ref) {
		*(volatile __u64 *)&set->way[way].ref = 0;
		((volatile __u8 *)&head->forward)[way] = 0;
		((volatile __u8 *)&head->reply)[way] = 0;
	}
	bpf_spin_unlock(&lock->lock);
	return 0;
}

static __always_inline void packet_enter(struct packet_head *head, struct packet_flow *e, __u32 way,
					 struct packet_work *w)
{
	const struct packet_search *s = &w->search;
	__u32 version = e->version + 1 ?: 1;

	*(volatile __u64 *)&e->ref = 0;
	barrier();
	e->to = w->handle | (__u64)packet_epoch << 32;
	e->client = w->p.flow.saddr;
	e->vip = w->p.flow.daddr;
	e->backend = w->ends.backend;
	e->client_port = w->p.flow.sport;
	e->vip_port = w->p.flow.dport;
	e->port = s->port;
	e->backend_port = w->ends.backend_port;
	e->ifindex = w->ifindex;
	e->version = version;
	e->protocol = w->p.flow.protocol;
	e->family = w->p.flow.family;
	e->timeout = w->timeout;
	e->life = (struct nat_life){ .seen = w->p.now, .client = packet_marks(w) };
	((volatile __u8 *)&head->forward)[way] = s->forward_tag;
	((volatile __u8 *)&head->reply)[way] = s->reply_tag;
	barrier();
	*(volatile __u64 *)&e->ref = (__u64)version << 32 | s->reply;
}

/*
 * How good a way is; more is better. `evict`: what isn't confirmed, though it had the time to be, or
 * is at its end, may go before its time.
 */
static __always_inline __u32 packet_rank(const struct packet_flow *e, const struct packet_work *w,
					 bool evict)
{
	struct nat_life life = e->life;
	__u16 age = w->p.now - life.seen;
	__u32 rank = 0;

	if (!e->ref)
		return PACKET_RANK_FREE;
	if (age > nat_allowed(e->protocol, life.client, life.backend, e->timeout) &&
	    age <= NAT_AGE_MAX)
		rank = PACKET_RANK_EXPIRED + age;
	else if (evict && nat_age(w->p.now, life.seen) > PACKET_YOUNG &&
		 (!(life.client & NAT_ANSWERED) || nat_is_closing(life.client, life.backend)))
		rank = PACKET_RANK_UNCONFIRMED + nat_age(w->p.now, life.seen);
	if ((__u32)e->ref == w->search.reply)
		return rank ? PACKET_RANK_SAME_PORT : PACKET_RANK_TAKEN;
	return rank;
}

/* Chooses a way of the set for the flow, and says whether it was there. Under the set's lock. */
static __always_inline __u32 packet_choose_way(const struct packet_set *set, struct packet_work *w,
					       __u32 evict)
{
	struct packet_search *s = &w->search;

	s->best = 0;
	for (__u32 way = 0; way < PACKET_WAYS; way++) {
		const struct packet_flow *e = &set->way[way];

		if (e->ref && packet_is_flow(e, w)) {
			s->way = way;
			return PACKET_FOUND;
		}
		/* By way of memory, so that the verifier doesn't follow every rank by itself. */
		*(volatile __u32 *)&s->rank = packet_rank(e, w, evict);
		if (*(volatile __u32 *)&s->rank > *(volatile __u32 *)&s->best) {
			s->best = *(volatile __u32 *)&s->rank;
			s->way = way;
		}
	}
	return s->best && s->best < PACKET_RANK_TAKEN ? PACKET_BOUND : PACKET_NO_ROOM;
}

/* Binds the flow to the candidate, if there is a way for it. `evict`: see packet_rank(). */
__noinline int packet_bind_candidate(__u32 evict)
{
	struct packet_work *w = packet_work();
	struct packet_head *head;
	struct packet_set *set;
	struct packet_lock *lock;
	__u32 at, result;

	if (!w)
		return PACKET_NO_ROOM;
	head = bpf_map_lookup_elem(&packet_heads, &w->search.set);
	set = bpf_map_lookup_elem(&packet_flows, &w->search.set);
	lock = bpf_map_lookup_elem(&packet_locks, &w->search.set);
	if (!head || !set || !lock)
		return PACKET_NO_ROOM;
	bpf_spin_lock(&lock->lock);
	result = packet_choose_way(set, w, evict);
	at = *(volatile __u32 *)&w->search.way % PACKET_WAYS;
	if (result == PACKET_BOUND)
		packet_enter(head, &set->way[at], at, w);
	bpf_spin_unlock(&lock->lock);
	if (result != PACKET_NO_ROOM)
		packet_take(w, &set->way[at], set->way[at].ref, at);
	return result;
}

/* Has flows of the first set look as far as the candidate that one of them needs. */
__noinline int packet_extend(__u32 tries)
{
	struct packet_work *w = packet_work();
	struct packet_head *head;
	struct packet_lock *lock;

	if (!w)
		return 0;
	head = bpf_map_lookup_elem(&packet_heads, &w->search.home);
	lock = bpf_map_lookup_elem(&packet_locks, &w->search.home);
	if (!head || !lock)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (head->reach < tries)
		head->reach = tries;
	bpf_spin_unlock(&lock->lock);
	return 0;
}

/* Tries port `i` for the flow: one that no other flow of the pod has to the same backend. */
__noinline int packet_try(__u32 i, __u32 evict)
{
	struct packet_work *w = packet_work();
	__u64 reply;

	if (!w)
		return PACKET_NO_ROOM;
	packet_candidate(w, i);
	reply = packet_reply_hash(packet_key(w->search.base, w->search.port), &w->ends.backend,
				  w->ends.backend_port);
	w->search.reply = reply;
	w->search.reply_tag = packet_tag(reply);
	if (i)
		packet_extend(i);
	return packet_bind_candidate(evict);
}

/* Binds the flow, which packet_find() doesn't find, to the backend of w->ends and w->handle. */
__noinline int packet_bind(__u32 evict)
{
	int result = PACKET_NO_ROOM;

	for (__u32 i = 0; i < PACKET_TRIES && result == PACKET_NO_ROOM; i++)
		result = packet_try(i, evict);
	return result;
}

#endif
