/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Token buckets: of what pods receive, which cannot be paced any more, and of what they send where
 * there is no fq. A bucket is a time, too: it is as full as that lies behind the present.
 */
#ifndef TOWPATH_BANDWIDTH_POLICE_H
#define TOWPATH_BANDWIDTH_POLICE_H

#include "bandwidth/pace.h"

/* A bucket of an aggregate. */
struct bw_tokens {
	__u64 *next; /* NULL: no limit */
	struct bpf_spin_lock *lock;
	__u64 depth;
	__u64 cost;
};

static __always_inline void bw_tokens_sent(struct __sk_buff *skb, struct bw_tokens *t,
					   __u32 aggregate)
{
	struct bandwidth_limit *limit = bw_limit(aggregate);
	struct bandwidth_state *state = bw_state(aggregate);

	if (!limit || !state || !limit->egress_cost)
		return;
	t->next = &state->next;
	t->lock = &state->lock;
	t->depth = limit->egress_bucket;
	t->cost = bw_cost(skb, limit->egress_cost, limit->egress_packet);
}

static __always_inline void bw_tokens_received(struct __sk_buff *skb, struct bw_tokens *t,
					       __u32 aggregate)
{
	struct bandwidth_limit *limit = bw_limit(aggregate);
	struct bandwidth_bucket *bucket = bpf_map_lookup_elem(&bw_buckets, &aggregate);

	if (!limit || !bucket || !limit->ingress_cost)
		return;
	t->next = &bucket->next;
	t->lock = &bucket->lock;
	t->depth = limit->ingress_bucket;
	t->cost = bw_cost(skb, limit->ingress_cost, limit->ingress_packet);
}

static __always_inline bool bw_is_empty(const struct bw_tokens *t, __u64 now)
{
	return t->next && bw_read(*t->next) > now;
}

/* Takes tokens. Whether the bucket was less than half full. */
static __always_inline bool bw_take(struct bw_tokens *t, __u64 now, const bool locked)
{
	__u64 from, least = now - t->depth;

	if (!t->next)
		return false;
	from = locked ? bw_charge_locked(t->next, t->lock, least, t->cost)
		      : bw_charge(t->next, least, t->cost);
	return from > now - t->depth / 2;
}

static __always_inline int bw_police(struct __sk_buff *skb, const bool locked)
{
	__u32 aggregate = bw_of_leaving(skb);
	struct bandwidth_limit *limit = bw_limit(aggregate);
	struct bandwidth_counts *counts = bw_count(aggregate);
	struct bw_tokens pod = {}, group = {};
	__u64 now;
	bool low;

	if (!limit || !counts)
		return TC_ACT_UNSPEC;
	if (!limit->egress_cost && !limit->group) {
		counts->packets[BANDWIDTH_UNLIMITED]++;
		return TC_ACT_UNSPEC;
	}
	skb->mark = BANDWIDTH_MARK << 16; /* it is charged: no device below does so again */
	skb->priority = limit->priority;
	now = bpf_ktime_get_ns();
	bw_tokens_sent(skb, &pod, aggregate);
	if (limit->group)
		bw_tokens_sent(skb, &group, limit->group);
	if (bw_is_empty(&pod, now))
		return bw_drop(counts, BANDWIDTH_DROP_POLICED);
	if (bw_is_empty(&group, now))
		return bw_drop(counts, BANDWIDTH_DROP_GROUP);
	low = bw_take(&pod, now, locked);
	low |= bw_take(&group, now, locked);
	counts->egress_bytes += skb->wire_len;
	counts->packets[low && bpf_skb_ecn_set_ce(skb) ? BANDWIDTH_MARKED : BANDWIDTH_SENT]++;
	return TC_ACT_UNSPEC;
}

static __always_inline int bw_receive(struct __sk_buff *skb, const bool locked)
{
	struct bandwidth_pod *pod = bw_pod(skb->ifindex);
	__u32 aggregate;
	struct bw_tokens own = {}, group = {};
	struct bandwidth_counts *counts;
	struct bandwidth_limit *limit;
	__u64 now;
	bool low;

	if (!pod)
		return TC_ACT_UNSPEC;
	aggregate = bw_of_pod(skb, pod, false);
	limit = bw_limit(aggregate);
	counts = bw_count(aggregate);
	if (!aggregate || !limit || !counts)
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	bw_tokens_received(skb, &own, aggregate);
	if (limit->group)
		bw_tokens_received(skb, &group, limit->group);
	if (bw_is_empty(&own, now) || bw_is_empty(&group, now))
		return bw_drop(counts, BANDWIDTH_DROP_RECEIVED);
	low = bw_take(&own, now, locked);
	low |= bw_take(&group, now, locked);
	counts->ingress_bytes += skb->wire_len;
	counts->packets[low && bpf_skb_ecn_set_ce(skb) ? BANDWIDTH_RECEIVED_MARKED
						       : BANDWIDTH_RECEIVED]++;
	return TC_ACT_UNSPEC;
}

#endif
