/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Charging. No charge may be lost, however many CPUs charge at once: one that reads the time,
 * adds to it and writes it back loses what others have added in between.
 */
#ifndef TOWPATH_BANDWIDTH_CLOCK_H
#define TOWPATH_BANDWIDTH_CLOCK_H

#include "bandwidth/maps.h"

#define bw_read(word) (*(volatile __u64 *)&(word))

static __always_inline __u64 bw_later(__u64 a, __u64 b)
{
	return a > b ? a : b;
}

/*
 * Moves a time by a cost, from `least` at least. Returns where it was moved from. Whoever loses the
 * compare-and-exchange has lost it to one that has just moved the time to the present, so that
 * adding is enough.
 */
static __always_inline __u64 bw_charge(__u64 *next, __u64 least, __u64 cost)
{
	__u64 before = bw_read(*next), from = bw_later(before, least);

	if (likely(__sync_val_compare_and_swap(next, before, from + cost) == before))
		return from;
	return __sync_fetch_and_add(next, cost);
}

/* The same under the lock that is beside it. */
static __always_inline __u64 bw_charge_locked(__u64 *next, struct bpf_spin_lock *lock, __u64 least,
					      __u64 cost)
{
	__u64 from;

	bpf_spin_lock(lock);
	from = bw_later(*next, least);
	*next = from + cost;
	bpf_spin_unlock(lock);
	return from;
}

#endif
