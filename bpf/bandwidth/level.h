/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * When a packet may leave as far as one aggregate is concerned: the pod's, or the group's.
 *
 * A flow that is within its fair share leaves now, whatever others have waiting; what it takes is
 * charged, so that they wait longer. A flow with more than that waits for its own time or, if that
 * is earlier, until all that was charged has left: so no rate is left unused.
 *
 * Whether a packet is dropped is found out before anything is charged: what is charged leaves.
 */
#ifndef TOWPATH_BANDWIDTH_LEVEL_H
#define TOWPATH_BANDWIDTH_LEVEL_H

#include "bandwidth/flows.h"

enum {
	BW_SLOWER = 3, /* by one over two to the power of this */
};

/* A packet, as all aggregates have it. */
struct bw_packet {
	__u64 now;
	__u64 stamp;	/* its own, 0: none that lies ahead */
	bool has_stamp; /* any, that is to be written over */
	__u32 hash;
	__u32 verdict;
};

/* A packet within an aggregate. */
struct bw_level {
	struct bandwidth_state *state;
	const struct bandwidth_limit *limit;
	__u64 cost;
	__u64 word;  /* its flow's, as it was found */
	__u64 start; /* that one's time, or the present */
	__u32 slot;
	__u32 flows; /* that share the rate */
};

/*
 * Whether a stamp lies so far ahead that its packet goes by the flow's time alone: many packets
 * with one stamp would all leave at once.
 */
static __always_inline bool bw_is_far(const struct bw_level *l, const struct bw_packet *p)
{
	return p->stamp > p->now + l->limit->horizon / 2;
}

/* False: the aggregate has no limit here. */
static __always_inline bool bw_level_begin(struct __sk_buff *skb, struct bw_level *l,
					   const struct bw_packet *p, __u32 aggregate,
					   const struct bandwidth_limit *limit)
{
	__u64 word, time;
	__u32 slot;

	if (!limit || !limit->egress_cost)
		return false;
	l->limit = limit;
	l->state = bw_state(aggregate);
	if (!l->state)
		return false;
	l->cost = bw_cost(skb, l->limit->egress_cost, l->limit->egress_packet);
	slot = bw_flow_slot(p->hash);
	word = bw_read(l->state->flow[slot]);
	if (unlikely(word >> BANDWIDTH_TAG_SHIFT != bw_flow_tag(p->hash))) {
		slot = bw_find_flow(aggregate, p->hash, p->now);
		barrier_var(slot); /* as in bw_flow_slot() */
		slot %= BANDWIDTH_FLOWS;
		word = bw_read(l->state->flow[slot]);
	}
	l->slot = slot;
	l->word = word;
	time = bw_flow_time(word);
	l->start = bw_later(time, p->now);
	l->flows = bw_active(l->state, aggregate, slot, p->now);
	/* The flow itself, if it was not among them. */
	if (time <= p->now || !l->flows)
		l->flows++;
	return true;
}

/* Whether the packet is to be dropped: a verdict, or BANDWIDTH_SENT. Nothing is changed. */
static __always_inline __u32 bw_level_refuses(const struct bw_level *l, const struct bw_packet *p)
{
	__u64 next = bw_read(l->state->next), horizon = l->limit->horizon;

	if (next > p->now + 2 * horizon)
		return BANDWIDTH_DROP_FULL;
	if (bw_is_far(l, p))
		return l->start > p->stamp + horizon ? BANDWIDTH_DROP_EXCESS : BANDWIDTH_SENT;
	return next > p->now + horizon && l->start > p->now + horizon ? BANDWIDTH_DROP_EXCESS
								      : BANDWIDTH_SENT;
}

/*
 * How far the packet moves its flow. Flows that have overtaken others leave `next` ahead of what is
 * waiting: above half a horizon they are all a little slower, until that is made up for.
 */
static __always_inline __u64 bw_level_step(const struct bw_level *l, const struct bw_packet *p)
{
	__u64 step = l->cost * l->flows;

	if (bw_read(l->state->next) > p->now + l->limit->horizon / 2)
		step += step >> BW_SLOWER;
	return step;
}

/* The flow's word after the packet. */
static __always_inline __u64 bw_level_word(const struct bw_level *l, const struct bw_packet *p)
{
	__u64 from = bw_is_far(l, p) ? bw_later(l->start, p->stamp) : l->start;
	__u64 most = bw_later(p->now, p->stamp) + 2 * l->limit->horizon;
	__u64 time = from + bw_level_step(l, p), tag = l->word >> BANDWIDTH_TAG_SHIFT;

	/* A word that is another flow's, and whose time is yet to come, is shared. */
	if (l->start == p->now)
		tag = bw_flow_tag(p->hash);
	return bw_flow_word(tag, time < most ? time : most);
}

/* When the packet leaves, all charged having left at `next`. */
static __always_inline __u64 bw_level_time(const struct bw_level *l, const struct bw_packet *p,
					   __u64 next)
{
	__u64 time = bw_later(next, p->now);

	if (bw_is_far(l, p) || l->start < time)
		time = l->start;
	return bw_later(time, p->stamp);
}

/* Charges the packet. Returns when it leaves. */
static __always_inline __u64 bw_level_charge(struct bw_level *l, const struct bw_packet *p)
{
	struct bandwidth_state *state = l->state;
	__u64 *flow = &state->flow[l->slot];
	__u64 word = bw_level_word(l, p);
	__u64 next = bw_charge(&state->next, p->now - l->limit->egress_burst, l->cost);

	/* Another CPU's packet of the flow: both are charged. Another flow's: it is shared by now. */
	if (__sync_val_compare_and_swap(flow, l->word, word) != l->word)
		__sync_fetch_and_add(flow, (l->cost * l->flows) >> BANDWIDTH_TIME_SHIFT);
	return bw_level_time(l, p, next);
}

static __always_inline __u64 bw_level_charge_locked(struct bw_level *l, const struct bw_packet *p)
{
	__u64 least = p->now - l->limit->egress_burst, word = bw_level_word(l, p), next;
	struct bandwidth_state *state = l->state;
	__u64 *flow = &state->flow[l->slot];

	bpf_spin_lock(&state->lock);
	next = bw_later(state->next, least);
	state->next = next + l->cost;
	if (*flow == l->word)
		*flow = word;
	else
		*flow += (l->cost * l->flows) >> BANDWIDTH_TIME_SHIFT;
	bpf_spin_unlock(&state->lock);
	return bw_level_time(l, p, next);
}

#endif
