/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: which backend a flow was given, so that it keeps it while
 * tables change. It is a cache. What it forgets, Maglev answers.
 *
 * All CPUs share it, since a flow's packets may move between them, and none takes
 * a lock: see struct flow for why a race costs an entry and never a wrong backend.
 */
#ifndef TOWPATH_LB_FLOW_TABLE_H
#define TOWPATH_LB_FLOW_TABLE_H

#include "net/address.h"
#include "net/hash.h"
#include "lb/maps.h"
#include "net/parse.h"
#include "net/tags.h"

enum flow_result {
	FLOW_NO_WAY = FLOW_WAYS,
};

enum flow_ages {
	FLOW_AGE_MAX = 0xffff - 16, /* from here on it was seen by a CPU whose clock is ahead */
};

/* Seconds in units of 2^shift jiffies, rounded up. */
static __always_inline __u32 jiffies_units(__u32 seconds, __u32 shift)
{
	return (seconds * jiffies_a_second + (1 << shift) - 1) >> shift;
}

/* Where a flow belongs, and where it was found. */
struct flow_place {
	__u64 *tags;
	struct flow *flow; /* NULL: not found */
	__u32 set;
	__u32 hash; /* goes into `ref` */
	__u32 way;  /* FLOW_NO_WAY: not found */
	__u16 now;  /* in units of `seen` */
	__u8 tag;
};

/* What a flow is found by. */
struct flow_id {
	const struct flow_key *key;
	__u32 service;
	__u8 tcp_flags;
};

static __always_inline struct flow_place flow_place(__u64 hash, __u64 jiffies)
{
	__u64 keyed = hash_step(hash, flow_seed);
	__u32 set = keyed & flow_mask, at = set;

	return (struct flow_place){
		.tags = bpf_map_lookup_elem(&flow_tags, &at),
		.set = set,
		.hash = keyed >> 32,
		.way = FLOW_NO_WAY,
		.now = jiffies >> FLOW_SEEN_SHIFT,
		.tag = keyed >> 56 ?: 1,
	};
}

/* A service's flows are of one family: of an address of IPv4 nothing but the last word counts. */
static __always_inline bool flow_is(const struct flow *flow, const struct flow_id *id)
{
	const struct flow_key *key = id->key;

	if (flow->sport != key->sport || (flow->service & ~FLOW_STATE) != id->service)
		return false;
	if (key->family == FAMILY_V4)
		return flow->saddr.word[3] == key->saddr.word[3];
	return address_equal(&flow->saddr, &key->saddr);
}

/* Returns the handle that the flow was given, 0 if it isn't known. Changes nothing. */
static __always_inline __u32 flow_lookup(struct flow_place *place, const struct flow_id *id)
{
	__u32 at = place->set;
	struct flow_set *set;
	struct flow *flow;
	__u64 matches;

	if (!place->tags)
		return 0;
	matches = match_tags(*(volatile __u64 *)place->tags, place->tag);
	if (!matches)
		return 0;
	set = bpf_map_lookup_elem(&flows, &at);
	if (!set)
		return 0;

	flow = set->way;
#pragma clang loop unroll(disable)
	for (__u32 way = 0; way < FLOW_WAYS; way++, flow++, matches >>= 8) {
		__u64 ref;

		if (!(matches & 0x80))
			continue;
		ref = *(volatile __u64 *)&flow->ref;
		if ((__u32)ref != place->hash || !flow_is(flow, id))
			continue;
		place->flow = flow;
		place->way = way;
		return ref >> 32;
	}
	return 0;
}

/*
 * The state of a flow after a segment of the client's. A SYN begins a connection where there
 * is none or where one has ended, and changes nothing of one that goes on: it may be forged
 * (RFC 5961, 4).
 */
static __always_inline __u32 flow_next_state(__u32 state, __u8 tcp_flags)
{
	if (tcp_begins(tcp_flags))
		return state ? FLOW_OPENING : 0;
	if (tcp_flags & (TCP_FIN | TCP_RST))
		return FLOW_ENDING;
	return state & FLOW_ENDING;
}

/* The same of one that nobody remembers: its first segment may be its last. */
static __always_inline __u32 flow_first_state(__u8 tcp_flags)
{
	return flow_next_state(FLOW_OPENING, tcp_flags);
}

/*
 * Notes a packet of the flow that was found. Two CPUs that note two packets at once may lose
 * what one of them says of the state: the flow is then remembered for longer than it need be.
 */
static __always_inline void flow_note(const struct flow_place *place, const struct flow_id *id)
{
	struct flow *flow = place->flow;
	__u32 service;

	if (!flow)
		return;
	if (flow->seen != place->now)
		flow->seen = place->now;
	service = flow->service;
	if (likely(service == id->service && !(id->tcp_flags & TCP_EDGES)))
		return;
	service = id->service | flow_next_state(service & FLOW_STATE, id->tcp_flags);
	if (flow->service != service)
		flow->service = service;
}

/*
 * Whether a segment begins another flow than the one that was found, if the choice is free: a
 * SYN, and of the flow that was found nothing but SYNs has been seen, or its end, or for long
 * nothing.
 */
static __always_inline bool flow_begins_anew(const struct flow_place *place,
					     const struct flow_id *id)
{
	const struct flow *flow = place->flow;
	__u16 age;

	if (likely(!tcp_begins(id->tcp_flags)) || !flow)
		return false;
	age = place->now - flow->seen;
	return flow->service & FLOW_STATE || (age > flow_idle && age < FLOW_AGE_MAX);
}

/*
 * Whether the flow of a datagram that was found has ended: what comes now is another one's.
 * `timeout`: its service's, in seconds; 0: as long as all others.
 */
static __always_inline bool flow_has_ended(const struct flow_place *place, const struct flow_id *id,
					   const __u32 *timeout)
{
	const struct flow *flow = place->flow;
	__u32 most;

	if (likely(id->key->protocol == IPPROTO_TCP) || !flow)
		return false;
	most = *timeout ? jiffies_units(*timeout, FLOW_SEEN_SHIFT) : flow_idle;
	return (__u16)(place->now - flow->seen) > most;
}

/* What this CPU has learnt in this jiffy. */
static __always_inline struct flow_cpu *learnt_now(__u32 cpu, __u32 tick)
{
	struct flow_cpu *budget = bpf_map_lookup_elem(&flow_cpus, &cpu);

	if (budget && budget->tick != tick) {
		budget->tick = tick;
		budget->learnt = 0;
		budget->full = 0;
	}
	return budget;
}

/* Whether this CPU may learn one more flow in this jiffy, of which it may learn `most`. */
static __always_inline bool may_learn(__u32 cpu, __u32 tick, __u32 most)
{
	struct flow_cpu *budget = learnt_now(cpu, tick);

	return budget && budget->learnt++ < most;
}

static __always_inline bool flow_may_learn(__u32 cpu, __u32 tick)
{
	return may_learn(cpu, tick, flow_learn);
}

/* A free way, else the one longest unseen. Age and way are compared as one number. */
static __always_inline __u32 flow_victim(const struct flow_set *set, __u16 now)
{
	__u32 oldest = 0;

#pragma unroll
	for (__u32 way = 0; way < FLOW_WAYS; way++) {
		const struct flow *flow = &set->way[way];
		__u32 age = flow->ref ? (__u16)(now - flow->seen) : 0x10000;
		__u32 rank = age * FLOW_WAYS + (FLOW_WAYS - 1 - way);

		if (rank > oldest)
			oldest = rank;
	}
	return FLOW_WAYS - 1 - oldest % FLOW_WAYS;
}

/* Forgets the flow that was found. */
static __always_inline void flow_forget(const struct flow_place *place)
{
	if (place->flow)
		*(volatile __u64 *)&place->flow->ref = 0;
}

/* Learns a flow, in the entry that it was found in if there was one. */
static __always_inline void flow_learn_as(const struct flow_place *place, const struct flow_id *id,
					  __u32 handle)
{
	__u32 at = place->set, way;
	struct flow_set *set = bpf_map_lookup_elem(&flows, &at);
	struct flow *flow;

	if (!set || !place->tags)
		return;
	way = place->way == FLOW_NO_WAY ? flow_victim(set, place->now) : place->way;
	way %= FLOW_WAYS;
	flow = &set->way[way];

	*(volatile __u64 *)&flow->ref = 0;
	flow->saddr = id->key->saddr;
	flow->service = id->service | flow_first_state(id->tcp_flags);
	flow->sport = id->key->sport;
	flow->seen = place->now;
	barrier();
	*(volatile __u64 *)&flow->ref = (__u64)handle << 32 | place->hash;
	/* One byte, so that two CPUs that learn in one set don't undo each other. */
	((volatile __u8 *)place->tags)[way] = place->tag;
}

#endif
