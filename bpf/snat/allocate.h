/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * New bindings (RFC 4787): an address and a port that no other flow to the same backend has.
 *
 * Two packets of one new flow, on two CPUs, meet under the lock of its first set and get
 * one entry.
 */
#ifndef TOWPATH_SNAT_ALLOCATE_H
#define TOWPATH_SNAT_ALLOCATE_H

#include "snat/table.h"
#include "lb/service.h"
#include "lb/tracked.h"

enum nat_search_limits {
	NAT_FULL_SETS = 4, /* in a row that say that the table is full */
};

/* How good a way is for a new entry; age comes on top. */
enum nat_rank {
	NAT_RANK_UNCONFIRMED = 1 << 16,
	NAT_RANK_EXPIRED = 2 << 16,
	NAT_RANK_FREE = 3 << 16,
	NAT_RANK_SAME_PORT = 4 << 16, /* it must go: its packets couldn't be told from ours */
	NAT_RANK_TAKEN = 5 << 16,
};

enum nat_result {
	NAT_FULL = 0, /* no way in the set */
	NAT_TAKEN,    /* another flow to the same backend has the port */
	NAT_BOUND,
	NAT_FOUND,
};

/*
 * How good a way is; more is better. `evict`: what isn't confirmed yet, or is at its
 * end, may go before its time. Half an entry is nobody's.
 */
static __always_inline __u32 nat_rank(const struct nat_flow *e, struct nat_life life, bool whole,
				      const struct nat *n, bool evict)
{
	__u16 age = n->search.now - life.seen;
	__u32 rank = 0;

	if (!e->ref)
		return NAT_RANK_FREE;
	if (unlikely(!whole))
		return (__u32)e->ref == n->search.reply ? NAT_RANK_SAME_PORT : NAT_RANK_FREE;
	if (age > nat_allowed(e->protocol, life.client, life.backend, e->timeout) &&
	    age <= NAT_AGE_MAX)
		rank = NAT_RANK_EXPIRED + age;
	else if (evict &&
		 (!(life.client & NAT_ANSWERED) || nat_is_closing(life.client, life.backend)))
		rank = NAT_RANK_UNCONFIRMED + nat_age(n->search.now, life.seen);
	if ((__u32)e->ref == n->search.reply)
		return rank ? NAT_RANK_SAME_PORT : NAT_RANK_TAKEN;
	return rank;
}

static __always_inline void nat_write(struct nat_head *head, struct nat_flow *e, __u32 way,
				      const struct flow_key *flow, const struct nat *n)
{
	__u32 version = nat_next_version(e);

	*(volatile __u64 *)&e->ref = 0;
	barrier();
	e->client = flow->saddr;
	e->vip = flow->daddr;
	e->client_port = flow->sport;
	e->vip_port = flow->dport;
	e->port = n->search.port;
	e->backend_port = n->backend_port;
	e->protocol = flow->protocol;
	e->source = n->search.source;
	e->handle = n->handle;
	e->timeout = n->timeout;
	e->version = version;
	head->life[way] = (struct nat_life){ .seen = n->search.now, .client = nat_marks_of(n) };
	((volatile __u8 *)&head->forward)[way] = n->search.forward_tag;
	((volatile __u8 *)&head->reply)[way] = n->search.reply_tag;
	barrier();
	*(volatile __u64 *)&e->ref = (__u64)version << 32 | n->search.reply;
}

/*
 * Binds the flow to the candidate in the first way that is free, which most sets have. Under the set's
 * lock. `whole`: see nat_whole_ways(). False: there is none, or the candidate or the flow itself may be
 * some entry's: whoever asks is to look at each.
 */
static __always_inline bool nat_bind_free(struct nat_head *head, struct nat_set *set, __u64 whole,
					  const struct flow_key *flow, struct nat *n)
{
	__u32 way = NAT_WAYS;

	if (whole == BYTES_80 || match_tags(head->forward, n->search.forward_tag))
		return false;
#pragma unroll
	for (int i = NAT_WAYS - 1; i >= 0; i--) {
		__u64 ref = set->way[i].ref;

		if (!ref)
			way = i;
		else if ((__u32)ref == n->search.reply)
			return false;
	}
	if (way == NAT_WAYS)
		return false;
	barrier_var(way);
	way %= NAT_WAYS;
	n->search.way = way;
	nat_write(head, &set->way[way], way, flow, n);
	return true;
}

/* Has flows of the first set look as far as the candidate that one of them needs. */
__noinline int nat_extend_depth(__u32 slot)
{
	struct nat *n = nat_of(slot);
	struct nat_head *head;
	struct nat_lock *lock;

	if (!n)
		return 0;
	head = bpf_map_lookup_elem(&nat_heads, &n->search.home);
	lock = bpf_map_lookup_elem(&nat_locks, &n->search.home);
	if (!head || !lock)
		return 0;
	bpf_spin_lock(&lock->lock);
	nat_reach(head, n->search.tries);
	bpf_spin_unlock(&lock->lock);
	return 0;
}

/* The candidate is to be the flow's, towards this backend and n->backend_port. */
static __always_inline void nat_expect_replies(const struct lb_ctx *lb, struct nat *n,
					       const struct backend *backend)
{
	__u64 reply =
		nat_reply_hash(n->search.key, &backend->addr, n->backend_port, lb->pkt.flow.family);

	n->search.reply = reply;
	n->search.reply_tag = nat_tag(reply);
}

/* Makes candidate `i` the one, towards n->handle and its port. False: it isn't there. */
static __always_inline bool nat_take_candidate(struct lb_ctx *lb, struct nat *n, __u32 i)
{
	__u32 index = n->handle & ((1 << HANDLE_INDEX_BITS) - 1);
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (!backend)
		return false;
	n->search.tries = i;
	/* Whoever has looked for the flow has left the first one there, unless more were looked at. */
	if (i || n->search.number != n->search.first)
		nat_candidate(lb, n, i ? nat_next(lb, n) : n->search.first);
	nat_expect_replies(lb, n, backend);
	return true;
}

/* Whether the candidate is a flow's that the kernel itself translates, towards the same backend. */
__noinline int nat_candidate_is_held(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	const volatile struct address *source;
	struct flow_key answer = {};
	struct backend *backend;

	if (!lb || !n)
		return 0;
	backend = backend_of(n->handle);
	if (!backend)
		return 0;
	source = &nat_addresses[n->search.source % (2 * NAT_SOURCES)];
	answer.saddr = backend->addr;
	for (int i = 0; i < 4; i++)
		answer.daddr.word[i] = source->word[i];
	answer.sport = n->backend_port;
	answer.dport = n->search.port;
	answer.protocol = lb->pkt.flow.protocol;
	answer.family = lb->pkt.flow.family;
	return tracked_holds(&answer);
}

/* Binds the flow to the candidate. NAT_FOUND: another CPU was faster. */
static __always_inline int nat_bind_candidate(const struct lb_ctx *lb, struct nat *n, __u32 evict)
{
	struct nat_head *head;
	struct nat_set *set;
	struct nat_lock *lock;
	__u32 at, result = NAT_FULL;
	__u64 whole;

	head = bpf_map_lookup_elem(&nat_heads, &n->search.set);
	set = bpf_map_lookup_elem(&nat_flows, &n->search.set);
	lock = bpf_map_lookup_elem(&nat_locks, &n->search.set);
	if (!head || !set || !lock)
		return NAT_FULL;

	n->search.best = 0;
	bpf_spin_lock(&lock->lock);
	whole = nat_whole_ways(head->forward, head->reply);
	if (nat_bind_free(head, set, whole, &lb->pkt.flow, n)) {
		bpf_spin_unlock(&lock->lock);
		return NAT_BOUND;
	}
	for (__u32 way = 0; way < NAT_WAYS; way++, whole >>= 8) {
		const struct nat_flow *e = &set->way[way];

		if (e->ref && nat_is_flow(e, &lb->pkt.flow, n) && whole & 0x80) {
			n->handle = e->handle;
			n->backend_port = e->backend_port;
			n->search.way = way;
			result = NAT_FOUND;
			break;
		}
		/* By way of memory, so that the verifier doesn't follow every rank by itself. */
		*(volatile __u32 *)&n->search.rank =
			nat_rank(e, head->life[way], whole & 0x80, n, evict);
		if (*(volatile __u32 *)&n->search.rank > *(volatile __u32 *)&n->search.best) {
			n->search.best = *(volatile __u32 *)&n->search.rank;
			n->search.way = way;
		}
	}
	if (result == NAT_FULL && n->search.best == NAT_RANK_TAKEN)
		result = NAT_TAKEN;
	if (result == NAT_FULL && n->search.best) {
		at = *(volatile __u32 *)&n->search.way % NAT_WAYS;
		nat_write(head, &set->way[at], at, &lb->pkt.flow, n);
		result = NAT_BOUND;
	}
	bpf_spin_unlock(&lock->lock);
	return result;
}

/*
 * Tries candidate `i`. NAT_TAKEN: the next one is worth a look. NAT_FULL: none is; a few
 * full sets in a row say that all are, so that, unless `evict`, no others are looked at,
 * which a flood would have to pay for with each of its packets.
 */
__noinline int nat_try_candidate(__u32 slot, __u32 i, __u32 evict)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	int result;

	if (!lb || !n || !nat_take_candidate(lb, n, i))
		return NAT_FULL;
	if (!i)
		n->search.full = 0;
	else if (i > n->search.depth) /* which never becomes less */
		nat_extend_depth(slot);
	if (tracks && nat_candidate_is_held(slot))
		return NAT_TAKEN;
	result = nat_bind_candidate(lb, n, evict);
	if (result != NAT_FULL)
		return result;
	return ++n->search.full < NAT_FULL_SETS || evict ? NAT_TAKEN : NAT_FULL;
}

/*
 * Binds the flow, which nat_find() doesn't find, to an address and a port towards the backend
 * in n->handle and its port: NAT_BOUND, NAT_FOUND with another CPU's answer, or something else
 * if there is none.
 */
__noinline int nat_bind(__u32 slot, __u32 evict)
{
	for (__u32 i = 0; i < NAT_TRIES; i++) {
		int result = nat_try_candidate(slot, i, evict);

		if (result != NAT_TAKEN)
			return result;
	}
	return NAT_TAKEN;
}

static __always_inline bool nat_is_bound(int result)
{
	return result == NAT_BOUND || result == NAT_FOUND;
}

#endif
