/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Times of departure that packets have already: of BBR, SO_MAX_PACING_RATE, SO_TXTIME. fq takes them
 * for CLOCK_MONOTONIC's; before Linux 7 whatever clock they are of, and drops what it then takes
 * for far ahead.
 */
#ifndef TOWPATH_BANDWIDTH_STAMP_H
#define TOWPATH_BANDWIDTH_STAMP_H

#include "bandwidth/maps.h"

enum bw_clock {
	BW_UNKNOWN = 0, /* CLOCK_REALTIME's, or from before stamps had types */
	BW_MONOTONIC = 1,
	BW_TAI = 2,
};

/* A stamp that says nothing of its clock is of the one that it is within this of, in ns. */
static const __s64 BW_NEAR = 10000000000LL;

/*
 * skb->tstamp. Compilers keep the address of a field that is used more than once, by which the
 * verifier lets nobody read or write.
 */
static __always_inline __u64 bw_tstamp(const struct __sk_buff *skb)
{
	__u64 stamp;

	asm volatile("%0 = *(u64 *)(%1 + %2)"
		     : "=r"(stamp)
		     : "r"(skb), "i"(offsetof(struct __sk_buff, tstamp)));
	return stamp;
}

static __always_inline void bw_write_tstamp(struct __sk_buff *skb, __u64 stamp)
{
	asm volatile("*(u64 *)(%0 + %1) = %2"
		     :
		     : "r"(skb), "i"(offsetof(struct __sk_buff, tstamp)), "r"(stamp)
		     : "memory");
}

static __always_inline bool bw_is_near(__u64 stamp, __u64 now)
{
	__s64 apart = stamp - now;

	return apart < BW_NEAR && -apart < BW_NEAR;
}

/* A packet's stamp in ns of CLOCK_MONOTONIC; 0: it says nothing. Notes what was done. */
static __always_inline __u64 bw_stamp(struct __sk_buff *skb, __u64 stamp, __u64 now,
				      struct bandwidth_counts *counts)
{
	__u32 clock = bw_types ? skb->tstamp_type : BW_UNKNOWN;
	__u64 tai;

	if (likely(clock == BW_MONOTONIC))
		return stamp;
	if (clock == BW_UNKNOWN && bw_is_near(stamp, now))
		return stamp;
	if (bw_tai) {
		tai = bpf_ktime_get_tai_ns();
		if (clock == BW_TAI || bw_is_near(stamp, tai)) {
			counts->converted++;
			return stamp - tai + now;
		}
	}
	counts->cleared++;
	return 0;
}

/* 0: none. False: the kernel takes none of this packet. */
static __always_inline bool bw_set_stamp(struct __sk_buff *skb, __u64 stamp)
{
	if (bw_types)
		return !bpf_skb_set_tstamp(
			skb, stamp, stamp ? BPF_SKB_TSTAMP_DELIVERY_MONO : BPF_SKB_TSTAMP_UNSPEC);
	bw_write_tstamp(skb, stamp);
	return true;
}

#endif
