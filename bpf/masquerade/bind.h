/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * New flows: a port that no socket of this node has, and no other flow from the same address to the
 * same remote. Two packets of one new flow, on two CPUs, meet under the lock of its first set and
 * get one entry.
 */
#ifndef TOWPATH_MASQUERADE_BIND_H
#define TOWPATH_MASQUERADE_BIND_H

#include "masquerade/table.h"

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

/* ---- Sockets of this node's ------------------------------------------------------- */

static __always_inline bool masq_tcp_socket(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					    __u32 size)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool masq_udp_socket(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					    __u32 size)
{
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * Whether a socket of this node's would get what a remote sends to an address and port. `number`:
 * of the address. What is bound to the port and neither listens nor is connected is only in the
 * table that the agent keeps.
 */
__noinline int masq_has_socket(struct __sk_buff *skb, __u32 number, __u32 port, __u32 answer)
{
	struct masq_work *w = masq_work();
	struct masquerade_source *source = masq_source(number);
	struct bpf_sock_tuple tuple = {};
	const struct address *remote;
	bool tcp;

	if (!w || !source)
		return false;
	tcp = w->flow.protocol == IPPROTO_TCP;
	if (!tcp && w->flow.protocol != IPPROTO_UDP)
		return false;
	remote = answer ? &w->flow.saddr : &w->flow.daddr;
	if (w->flow.family == FAMILY_V4) {
		tuple.ipv4.saddr = remote->word[3];
		tuple.ipv4.daddr = source->address.word[3];
		tuple.ipv4.sport = answer ? w->flow.sport : w->flow.dport;
		tuple.ipv4.dport = port;
		return tcp ? masq_tcp_socket(skb, &tuple, sizeof(tuple.ipv4))
			   : masq_udp_socket(skb, &tuple, sizeof(tuple.ipv4));
	}
	__builtin_memcpy(tuple.ipv6.saddr, remote, 16);
	__builtin_memcpy(tuple.ipv6.daddr, &source->address, 16);
	tuple.ipv6.sport = answer ? w->flow.sport : w->flow.dport;
	tuple.ipv6.dport = port;
	return tcp ? masq_tcp_socket(skb, &tuple, sizeof(tuple.ipv6))
		   : masq_udp_socket(skb, &tuple, sizeof(tuple.ipv6));
}

/* Whether the agent has seen a socket that has bound the port, of whatever address. */
static __always_inline bool masq_port_taken(__be16 port, __u8 protocol)
{
	__u32 which = protocol == IPPROTO_UDP, number = bpf_ntohs(port);
	const struct masquerade_ports *ports = bpf_map_lookup_elem(&masq_ports, &which);

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	/* Or the compiler leaves the bound out, and Linux 5.10 doesn't know how far that is. */
	barrier_var(number);
	return ports && ports->taken[(number >> 6) % MASQ_PORT_WORDS] >> (number & 63) & 1;
}

/* ---- Endpoint-independent mapping (RFC 4787, REQ-1) ------------------------------- */

static __always_inline void masq_endpoint(const struct masq_work *w, __u32 source,
					  struct masquerade_endpoint *key)
{
	key->address = *(const struct address *)&w->to;
	key->source = source;
	key->port = w->search.port;
	key->protocol = w->flow.protocol;
	key->family = w->flow.family;
}

static __always_inline bool masq_maps_client(const struct masquerade_mapping *m,
					     const struct masq_work *w)
{
	return m->client_port == w->flow.sport && address_equal(&m->client, &w->flow.saddr);
}

/* Until when a mapping is its client's, if nothing more of it is seen. */
static __always_inline __u16 masq_mapping_until(const struct masq_work *w)
{
	return w->search.now + (w->flow.protocol == IPPROTO_TCP ? nat_tcp_open : nat_udp_open);
}

/* Has the mapping of the candidate, or of the flow that was found, live on. */
__noinline int masq_mapping_seen(__u32 source)
{
	struct masq_work *w = masq_work();
	struct masquerade_endpoint key;
	struct masquerade_mapping *m;

	if (!w)
		return 0;
	masq_endpoint(w, source, &key);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	if (m && masq_maps_client(m, w)) {
		m->seen = w->search.now;
		m->until = masq_mapping_until(w);
	}
	return 0;
}

/* Whether the candidate is already the client's. */
static __always_inline bool masq_is_mapped(struct masq_work *w, __u32 source)
{
	struct masquerade_endpoint key;
	struct masquerade_mapping *m;

	masq_endpoint(w, source, &key);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	return m && masq_maps_client(m, w) && !masq_mapping_over(m, w->search.now);
}

/* Makes the candidate the client's. False: it is another's. */
static __always_inline bool masq_claim(struct masq_work *w, __u32 source, bool evict)
{
	struct masquerade_endpoint key;
	struct masquerade_mapping mine = {}, *m;

	masq_endpoint(w, source, &key);
	mine.client = w->flow.saddr;
	mine.client_port = w->flow.sport;
	mine.seen = w->search.now;
	mine.until = masq_mapping_until(w);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	if (!m)
		return !bpf_map_update_elem(&masq_mappings, &key, &mine, BPF_NOEXIST);
	if (masq_maps_client(m, w)) {
		m->seen = mine.seen;
		m->until = mine.until;
		return true;
	}
	if (!masq_mapping_over(m, w->search.now) &&
	    !(evict && nat_age(w->search.now, m->seen) > nat_udp_new))
		return false;
	return !bpf_map_update_elem(&masq_mappings, &key, &mine, BPF_ANY);
}

/* The candidate that is the client's already; NAT_TRIES: none is. */
__noinline int masq_mapped_candidate(__u32 source)
{
	struct masq_work *w = masq_work();

	if (!w)
		return NAT_TRIES;
	for (__u32 i = 0; i < NAT_TRIES; i++) {
		masq_candidate(w, i);
		if (masq_is_mapped(w, source))
			return i;
	}
	return NAT_TRIES;
}

/* ---- Entries ---------------------------------------------------------------------- */

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
	e->client = w->flow.saddr;
	e->remote = w->flow.daddr;
	e->client_port = w->flow.sport;
	e->remote_port = w->flow.dport;
	e->port = s->port;
	e->protocol = w->flow.protocol;
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

/* Binds the flow to the candidate. `evict`: see masq_rank(). */
__noinline int masq_bind_candidate(__u32 evict)
{
	struct masq_work *w = masq_work();
	struct masq_search *s;
	struct masquerade_head *head;
	struct masq_set *set;
	struct masq_lock *lock;
	__u32 at, result = MASQ_NO_ROOM, stale;
	__u64 whole;

	if (!w)
		return MASQ_NO_ROOM;
	s = &w->search;
	head = bpf_map_lookup_elem(&masq_heads, &s->set);
	set = bpf_map_lookup_elem(&masq_flows, &s->set);
	lock = bpf_map_lookup_elem(&masq_locks, &s->set);
	if (!head || !set || !lock)
		return MASQ_NO_ROOM;
	stale = masq_stale_ways(s->set);
	s->best = 0;
	bpf_spin_lock(&lock->lock);
	whole = nat_whole_ways(head->forward, head->reply);
	for (__u32 way = 0; way < NAT_WAYS; way++, whole >>= 8, stale >>= 1) {
		const struct masquerade_flow *e = &set->way[way];
		bool live = whole & 0x80 && !(stale & 1);

		if (e->ref && live && masq_is_flow(e, &w->flow, s->port)) {
			s->source = e->source;
			s->generation = e->generation;
			s->way = way;
			result = MASQ_FOUND;
			break;
		}
		/* By way of memory, so that the verifier doesn't follow every rank by itself. */
		*(volatile __u32 *)&s->rank = masq_rank(e, way == s->own, live, s, evict);
		if (*(volatile __u32 *)&s->rank > *(volatile __u32 *)&s->best) {
			s->best = *(volatile __u32 *)&s->rank;
			s->way = way;
		}
	}
	if (result == MASQ_NO_ROOM && s->best == MASQ_RANK_TAKEN)
		result = MASQ_TAKEN;
	if (result == MASQ_NO_ROOM && s->best) {
		at = *(volatile __u32 *)&s->way % NAT_WAYS;
		masq_enter(head, &set->way[at], at, w);
		result = MASQ_BOUND;
	}
	bpf_spin_unlock(&lock->lock);
	return result;
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
	reply = masq_reply_hash(w->search.key, &w->to, w->flow.family);
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
	if (masq_port_taken(w->search.port, w->flow.protocol) ||
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
	/* The search is where that candidate is; one step less, since trying makes it. */
	w->search.number = w->search.number >= w->search.stride
				   ? w->search.number - w->search.stride
				   : w->search.number + masq_port_count - w->search.stride;
	return masq_try(skb, i, evict);
}

/*
 * Binds the flow, which masq_find() doesn't find, to the address w->to, whose number and generation
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
	if (w->begun_at != (__u32)w->jiffies) {
		w->begun_at = w->jiffies;
		w->begun = 0;
	}
	return w->begun++ < masq_rate;
}

static __always_inline bool masq_is_bound(int result)
{
	return result == MASQ_BOUND || result == MASQ_FOUND;
}

#endif
