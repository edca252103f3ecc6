/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * New flows: a port that no socket of this node has, and no other flow from the same address to the
 * same remote. Two packets of one new flow, on two CPUs, meet under the lock of its first set and
 * get one entry.
 */
#ifndef TOWPATH_MASQUERADE_BIND_H
#define TOWPATH_MASQUERADE_BIND_H

#include "masquerade/mapping.h"
#include "masquerade/sockets.h"

enum masq_bind_limits {
	MASQ_FULL_SETS = 4, /* in a row that say that the table is full */
	MASQ_YOUNG = 4,	    /* units of nat_life.seen in which an answer may still be on its way */
};

/* How good a way is for a new entry; age comes on top. */
enum masq_rank {
	MASQ_RANK_UNCONFIRMED = 1 << 16,
	MASQ_RANK_EXPIRED = 2 << 16,
	MASQ_RANK_FREE = 3 << 16,
	MASQ_RANK_OWN = 4 << 16,       /* that, or expired, and the flow's own way */
	MASQ_RANK_SAME_PORT = 5 << 16, /* it must go: its packets couldn't be told from ours */
	MASQ_RANK_TAKEN = 6 << 16,
};

enum masq_bound {
	MASQ_NO_ROOM = 0, /* no way in the set */
	MASQ_TAKEN,	  /* the port is another's */
	MASQ_BOUND,
	MASQ_FOUND, /* another CPU was faster */
};

/*
 * How good a way is; more is better. `evict`: what isn't confirmed, though it had the time to
 * be, or is at its end, may go before its time. Half an entry is nobody's, nor is one whose address has gone.
 */
static __always_inline __u32 masq_rank(const struct masquerade_flow *e, bool own, bool whole,
				       const struct masq_search *s, bool evict)
{
	struct nat_life life = e->life;
	__u16 age = s->now - life.seen;
	__u32 rank = 0;

	if (!e->ref)
		return own ? MASQ_RANK_OWN : MASQ_RANK_FREE;
	if (unlikely(!whole))
		return (__u32)e->ref == s->reply ? MASQ_RANK_SAME_PORT : MASQ_RANK_FREE;
	if (age > masq_allowed(e->protocol, life.client, life.backend) && age <= NAT_AGE_MAX)
		rank = own ? MASQ_RANK_OWN : MASQ_RANK_EXPIRED + age;
	else if (evict && nat_age(s->now, life.seen) > MASQ_YOUNG &&
		 (!(life.client & NAT_ANSWERED) || nat_is_closing(life.client, life.backend)))
		rank = MASQ_RANK_UNCONFIRMED + nat_age(s->now, life.seen);
	if ((__u32)e->ref == s->reply)
		return rank ? MASQ_RANK_SAME_PORT : MASQ_RANK_TAKEN;
	return rank;
}

static __always_inline void masq_enter(struct masquerade_head *head, struct masquerade_flow *e,
				       __u32 way, const struct masq_work *w)
{
	const struct masq_search *s = &w->search;
	__u32 version = e->version + 1 ?: 1;

	*(volatile __u64 *)&e->ref = 0;
	barrier();
	e->client = w->p.flow.saddr;
	e->remote = w->p.flow.daddr;
	e->client_port = w->p.flow.sport;
	e->remote_port = w->p.flow.dport;
	e->port = s->port;
	e->protocol = w->p.flow.protocol;
	e->source = s->source;
	e->generation = s->generation;
	e->ifindex = s->ifindex;
	e->version = version;
	e->life = (struct nat_life){ .seen = s->now, .client = masq_marks(w) };
	((volatile __u8 *)&head->forward)[way] = s->forward_tag;
	((volatile __u8 *)&head->reply)[way] = s->reply_tag;
	barrier();
	*(volatile __u64 *)&e->ref = (__u64)version << 32 | s->reply;
}

/* A bit for each entry of the candidate's set whose address has gone: asked before the lock. */
__noinline int masq_stale_ways(__u32 set)
{
	struct masq_set *flows = bpf_map_lookup_elem(&masq_flows, &set);
	int found = 0;

	if (!flows)
		return 0;
	for (__u32 way = 0; way < NAT_WAYS; way++) {
		if (flows->way[way].ref && masq_is_stale(&flows->way[way]))
			found |= 1 << way;
	}
	return found;
}

/*
 * Whether the flow's own way is free, and no other entry of the set can be this flow's, or have its
 * port: that is said by the head, without a look at them. Under the lock.
 */
static __always_inline bool masq_own_is_free(const struct masquerade_head *head,
					     const struct masquerade_flow *own,
					     const struct masq_search *s)
{
	if (match_tags(head->forward, s->forward_tag) || match_tags(head->reply, s->reply_tag))
		return false;
	return !own->ref || masq_expired(&own->life, own->protocol, s->now);
}

/* Binds the flow to the candidate, in its own way. MASQ_NO_ROOM: that isn't free. */
__noinline int masq_bind_own(void)
{
	struct masq_work *w = masq_work();
	struct masquerade_head *head;
	struct masq_set *set;
	struct masq_lock *lock;
	__u32 way, result = MASQ_NO_ROOM;

	if (!w)
		return MASQ_NO_ROOM;
	head = bpf_map_lookup_elem(&masq_heads, &w->search.set);
	set = bpf_map_lookup_elem(&masq_flows, &w->search.set);
	lock = bpf_map_lookup_elem(&masq_locks, &w->search.set);
	way = w->search.own;
	if (!head || !set || !lock || way >= NAT_WAYS)
		return MASQ_NO_ROOM;
	bpf_spin_lock(&lock->lock);
	if (masq_own_is_free(head, &set->way[way], &w->search)) {
		masq_enter(head, &set->way[way], way, w);
		result = MASQ_BOUND;
	}
	bpf_spin_unlock(&lock->lock);
	return result;
}

/*
 * Looks at all of the set's ways, of which `stale` are. MASQ_FOUND: the flow is there, entered by
 * another CPU. MASQ_BOUND: s->way is the best one for it. Under the lock.
 */
static __always_inline __u32 masq_choose(const struct masquerade_head *head,
					 const struct masq_set *set, struct masq_work *w,
					 __u32 stale, __u32 evict)
{
	struct masq_search *s = &w->search;
	__u64 whole = nat_whole_ways(head->forward, head->reply);

	s->best = 0;
	for (__u32 way = 0; way < NAT_WAYS; way++, whole >>= 8, stale >>= 1) {
		const struct masquerade_flow *e = &set->way[way];
		bool live = whole & 0x80 && !(stale & 1);

		if (e->ref && live && masq_is_flow(e, &w->p.flow, s->port)) {
			s->source = e->source;
			s->generation = e->generation;
			s->way = way;
			return MASQ_FOUND;
		}
		/* By way of memory, so that the verifier doesn't follow every rank by itself. */
		*(volatile __u32 *)&s->rank = masq_rank(e, way == s->own, live, s, evict);
		if (*(volatile __u32 *)&s->rank > *(volatile __u32 *)&s->best) {
			s->best = *(volatile __u32 *)&s->rank;
			s->way = way;
		}
	}
	if (s->best == MASQ_RANK_TAKEN)
		return MASQ_TAKEN;
	return s->best ? MASQ_BOUND : MASQ_NO_ROOM;
}

/* Binds the flow to the candidate, in the best way there is. `evict`: see masq_rank(). */
__noinline int masq_bind_any(__u32 evict)
{
	struct masq_work *w = masq_work();
	struct masquerade_head *head;
	struct masq_set *set;
	struct masq_lock *lock;
	__u32 at, result, stale;

	if (!w)
		return MASQ_NO_ROOM;
	head = bpf_map_lookup_elem(&masq_heads, &w->search.set);
	set = bpf_map_lookup_elem(&masq_flows, &w->search.set);
	lock = bpf_map_lookup_elem(&masq_locks, &w->search.set);
	if (!head || !set || !lock)
		return MASQ_NO_ROOM;
	stale = masq_stale_ways(w->search.set);
	bpf_spin_lock(&lock->lock);
	result = masq_choose(head, set, w, stale, evict);
	if (result == MASQ_BOUND) {
		at = *(volatile __u32 *)&w->search.way % NAT_WAYS;
		masq_enter(head, &set->way[at], at, w);
	}
	bpf_spin_unlock(&lock->lock);
	return result;
}

/* Binds the flow to the candidate. `evict`: see masq_rank(). */
static __always_inline int masq_bind_candidate(__u32 evict)
{
	int result = masq_bind_own();

	return result == MASQ_NO_ROOM ? masq_bind_any(evict) : result;
}

/* Has flows of the first set look as far as the candidate that one of them needs. */
__noinline int masq_extend_depth(__u32 tries)
{
	struct masq_work *w = masq_work();
	struct masquerade_head *head;
	struct masq_lock *lock;

	if (!w)
		return 0;
	head = bpf_map_lookup_elem(&masq_heads, &w->search.home);
	lock = bpf_map_lookup_elem(&masq_locks, &w->search.home);
	if (!head || !lock)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (head->reach < tries)
		head->reach = tries;
	bpf_spin_unlock(&lock->lock);
	return 0;
}

/* Makes candidate `i` the one, with its hash as replies have it. */
static __always_inline void masq_take_candidate(struct masq_work *w, __u32 i)
{
	__u64 reply;

	masq_candidate(w, i);
	reply = masq_reply_hash(w->search.key, &w->p.to, w->p.flow.family);
	w->search.reply = reply;
	w->search.reply_tag = masq_tag(reply);
}

/*
 * Tries candidate `i`. MASQ_TAKEN: the next one is worth a look. MASQ_NO_ROOM: none is; a few full
 * sets in a row say that all are, unless `evict`.
 */
__noinline int masq_try(struct __sk_buff *skb, __u32 i, __u32 evict)
{
	struct masq_work *w = masq_work();
	int result;

	if (!w)
		return MASQ_NO_ROOM;
	masq_take_candidate(w, i);
	if (!i)
		w->search.full = 0;
	if (masq_port_taken(w->search.port, w->p.flow.protocol) ||
	    masq_has_socket(skb, w->search.source, w->search.port, 0))
		return MASQ_TAKEN;
	if (masq_independent && !masq_claim(w, w->search.source, evict))
		return MASQ_TAKEN;
	if (i)
		masq_extend_depth(i);
	result = masq_bind_candidate(evict);
	if (result != MASQ_NO_ROOM)
		return result;
	return ++w->search.full < MASQ_FULL_SETS || evict ? MASQ_TAKEN : MASQ_NO_ROOM;
}

/* The candidate that masq_mapped_candidate() has come to becomes the next one to be taken. */
static __always_inline void masq_step_back(struct masq_search *s)
{
	s->number = s->number >= s->stride ? s->number - s->stride
					   : s->number + masq_port_count - s->stride;
}

/* Goes to candidate `i` by way of those in front of it, and tries it. */
static __always_inline int masq_try_mapped(struct __sk_buff *skb, struct masq_work *w, __u32 evict)
{
	__u32 i = masq_mapped_candidate(w->search.source);

	if (i >= NAT_TRIES)
		return MASQ_TAKEN;
	masq_step_back(&w->search);
	return masq_try(skb, i, evict);
}

/*
 * Binds the flow, which masq_find() doesn't find, to the address w->p.to, whose number and generation
 * are in the search, and a port.
 */
__noinline int masq_bind(struct __sk_buff *skb, __u32 evict)
{
	struct masq_work *w = masq_work();
	int result = MASQ_TAKEN;

	if (!w)
		return MASQ_NO_ROOM;
	if (masq_independent)
		result = masq_try_mapped(skb, w, evict);
	for (__u32 i = 0; i < NAT_TRIES && result == MASQ_TAKEN; i++)
		result = masq_try(skb, i, evict);
	return result;
}

/*
 * Whether one more flow may begin. A flood of them would take all ports, and time: what finds no
 * port has looked for one for long.
 */
static __always_inline bool masq_may_bind(struct masq_work *w)
{
	if (w->begun_at != (__u32)w->p.jiffies) {
		w->begun_at = w->p.jiffies;
		w->begun = 0;
	}
	return w->begun++ < masq_rate;
}

static __always_inline bool masq_is_bound(int result)
{
	return result == MASQ_BOUND || result == MASQ_FOUND;
}

#endif
