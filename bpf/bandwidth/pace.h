/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What pods send, where it leaves the node. */
#ifndef TOWPATH_BANDWIDTH_PACE_H
#define TOWPATH_BANDWIDTH_PACE_H

#include <linux/pkt_cls.h>

#include "bandwidth/level.h"
#include "bandwidth/stamp.h"

/* Of no aggregate: only its stamp is seen to, since fq would drop it for another clock's. */
static __always_inline int bw_unlimited(struct __sk_buff *skb, struct bandwidth_counts *counts)
{
	__u64 before = bw_tstamp(skb);

	counts->packets[BANDWIDTH_UNLIMITED]++;
	if (unlikely(before && bw_is_ip(skb))) {
		__u64 stamp = bw_stamp(skb, before, bpf_ktime_get_ns(), counts);

		if (stamp != before)
			bw_set_stamp(skb, stamp);
	}
	return TC_ACT_UNSPEC;
}

static __always_inline int bw_drop(struct bandwidth_counts *counts, __u32 verdict)
{
	if (verdict < BANDWIDTH_VERDICTS)
		counts->packets[verdict]++;
	return TC_ACT_SHOT;
}

/* Of the two aggregates, whether either refuses the packet. */
static __always_inline __u32 bw_refused(const struct bw_level *pod, const struct bw_level *group,
					const struct bw_packet *p)
{
	__u32 verdict = BANDWIDTH_SENT;

	if (p->stamp > p->now + BANDWIDTH_STAMP_SECONDS * 1000000000ULL)
		return BANDWIDTH_DROP_STAMP;
	if (pod->state)
		verdict = bw_level_refuses(pod, p);
	if (verdict == BANDWIDTH_SENT && group->state &&
	    bw_level_refuses(group, p) != BANDWIDTH_SENT)
		return BANDWIDTH_DROP_GROUP;
	return verdict;
}

/* Writes the time into a packet that is charged, and counts it. */
static __always_inline int bw_depart(struct __sk_buff *skb, struct bandwidth_counts *counts,
				     const struct bw_packet *p, __u64 time, __u64 mark)
{
	__u64 delay = time - p->now;
	__u32 verdict = BANDWIDTH_SENT;

	counts->egress_bytes += skb->wire_len;
	if (unlikely(!bw_is_ip(skb))) {
		counts->packets[BANDWIDTH_UNPACED]++;
		return TC_ACT_UNSPEC;
	}
	if (delay) {
		verdict = delay > mark && bpf_skb_ecn_set_ce(skb) ? BANDWIDTH_MARKED
								  : BANDWIDTH_DELAYED;
		counts->delay += delay;
		if (delay > counts->longest)
			counts->longest = delay;
	}
	if (delay || p->has_stamp)
		bw_set_stamp(skb, time);
	counts->packets[verdict]++;
	return TC_ACT_UNSPEC;
}

static __always_inline int bw_pace(struct __sk_buff *skb, const bool locked)
{
	__u32 aggregate = bw_of_leaving(skb);
	struct bandwidth_limit *limit = bw_limit(aggregate);
	struct bandwidth_counts *counts = bw_count(aggregate);
	struct bw_level pod = {}, group = {};
	struct bw_packet p = {};
	__u64 time, mark;

	if (!limit || !counts)
		return TC_ACT_UNSPEC; /* a number that no aggregate has */
	if (!limit->egress_cost && !limit->group)
		return bw_unlimited(skb, counts);
	skb->mark = BANDWIDTH_MARK << 16; /* it is charged: no device below does so again */
	skb->priority = limit->priority;
	p.now = time = bpf_ktime_get_ns();
	p.stamp = bw_tstamp(skb);
	p.has_stamp = p.stamp;
	if (unlikely(p.stamp)) {
		p.stamp = bw_stamp(skb, p.stamp, p.now, counts);
		if (p.stamp <= p.now)
			p.stamp = 0;
	}
	p.hash = bpf_get_hash_recalc(skb);
	if (!bw_level_begin(skb, &pod, &p, aggregate, limit))
		pod.state = NULL;
	if (!limit->group || !bw_level_begin(skb, &group, &p, limit->group, bw_limit(limit->group)))
		group.state = NULL;
	p.verdict = bw_refused(&pod, &group, &p);
	if (p.verdict != BANDWIDTH_SENT)
		return bw_drop(counts, p.verdict);
	mark = limit->mark;
	if (pod.state)
		time = locked ? bw_level_charge_locked(&pod, &p) : bw_level_charge(&pod, &p);
	if (group.state)
		time = bw_later(time, locked ? bw_level_charge_locked(&group, &p)
					     : bw_level_charge(&group, &p));
	return bw_depart(skb, counts, &p, time, mark);
}

#endif
