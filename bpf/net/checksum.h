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
#include "net/parse.h"

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

/*
 * Of a sum of words, of up to 32 bits and fewer than 2^16 of them. The first step leaves 2^32 - 1
 * at most, or a carry and less than 2^16 below it; so the last one leaves no carry.
 */
static __always_inline __u16 checksum_of(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Of an IPv4 header without options, whose own checksum is 0. */
static __always_inline __u16 ipv4_checksum(const struct iphdr *ip)
{
	const wide32 *word = (const wide32 *)ip;

	return checksum_of((__u64)word[0] + word[1] + word[2] + word[3] + word[4]);
}

/* The checksum after the change. */
static __always_inline __u16 checksum_after(__u16 check, __u64 difference)
{
	return checksum_of(difference + (__u16)~check);
}

/* The same for UDP: 0 says that there is none, and 0xffff is the same number as 0. */
static __always_inline __u16 udp_checksum_after(__u16 check, __u64 difference)
{
	return check ? checksum_after(check, difference) ?: 0xffff : 0;
}

#endif
