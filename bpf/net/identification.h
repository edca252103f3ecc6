/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Identifications of packets whose source is translated.
 *
 * Identifications tell packets apart within a pair of addresses, and who numbers them knows
 * of no other sender (RFC 791; RFC 8200, 4.5). Translated, many senders are one pair, so
 * each gets numbers of its own (RFC 3022, 4.3; RFC 4963): XORed with what only depends on the
 * addresses that the packet came with, so that one sender's stay different, and those of
 * one packet's fragments the same.
 */
#ifndef TOWPATH_NET_IDENTIFICATION_H
#define TOWPATH_NET_IDENTIFICATION_H

#include <linux/ip.h>

#include "net/checksum.h"
#include "net/hash.h"

/* For packets from one address to another. IPv6 fragments need not agree on a protocol. */
static __always_inline __u32 identification_mask(const struct address *from,
						 const struct address *to, __u8 family,
						 __u8 protocol, __u64 seed)
{
	__u64 pair = hash_address(hash_address(seed, from), to);

	return hash_step(pair, family == FAMILY_V4 ? protocol : 0) >> 32;
}

/* Both return the difference. IPv4 has 16 bits of the mask. */
static __always_inline __u64 replace_id_ipv4(struct iphdr *ip, __u32 mask)
{
	__be16 before = ip->id;

	ip->id = before ^ bpf_htons((__u16)mask);
	return difference16(before, ip->id);
}

static __always_inline __u64 replace_id_ipv6(__be32 *id, __u32 mask)
{
	__be32 before = *id;

	*id = before ^ bpf_htonl(mask);
	return difference32(before, *id);
}

#endif
