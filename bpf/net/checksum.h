/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Internet checksums that follow a change of what they cover (RFC 1624, equation 3).
 *
 * A difference is a sum of words that came, and of the complements of those that went,
 * as they lie in memory: the sum doesn't care about byte order (RFC 1071).
 */
#ifndef TOWPATH_NET_CHECKSUM_H
#define TOWPATH_NET_CHECKSUM_H

#include "abi/base.h"

static __always_inline __u64 difference32(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u64 difference16(__u16 from, __u16 to)
{
	return (__u64)(__u16)~from + to;
}

/* Writes another address. */
static __always_inline __u64 replace_address(struct address *at, const struct address *to)
{
	__u64 difference = 0;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		difference += difference32(at->word[i], to->word[i]);
		at->word[i] = to->word[i];
		/* Now, and not when all words have been kept for it on the stack. */
		asm volatile("" : "+r"(difference));
	}
	return difference;
}

/* The checksum after the change. */
static __always_inline __u16 checksum_after(__u16 check, __u64 difference)
{
	__u64 sum = difference + (__u16)~check;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The same for UDP: 0 says that there is none, and 0xffff is the same number as 0. */
static __always_inline __u16 udp_checksum_after(__u16 check, __u64 difference)
{
	return check ? checksum_after(check, difference) ?: 0xffff : 0;
}

#endif
