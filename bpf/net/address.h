/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses, of either family: 16 bytes in both. */
#ifndef TOWPATH_NET_ADDRESS_H
#define TOWPATH_NET_ADDRESS_H

#include <stdbool.h>

#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"
#include "net/wide.h"

static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	const wide64 *x = (const wide64 *)a, *y = (const wide64 *)b;

	return x[1] == y[1] && x[0] == y[0];
}

/*
 * Whether it is an address that a host can be reached at from other links (RFC 6890): none that is
 * unspecified, loopback, multicast, broadcast or reserved, nor IPv6's of one link or with an IPv4
 * address inside. The look-up in the FIB doesn't care. IPv4's link-local ones pass: they are reached
 * on the link.
 */
static __always_inline bool address_is_host(const struct address *addr, __u8 family)
{
	__u32 first = bpf_ntohl(addr->word[family == FAMILY_V4 ? 3 : 0]);

	if (family == FAMILY_V4)
		return first >> 24 && first >> 24 != 127 && first >> 28 < 14;
	if (first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6)
		return false;
	if (addr->word[0] || addr->word[1])
		return true;
	return addr->word[2] ? addr->word[2] != bpf_htonl(0xffff) : bpf_ntohl(addr->word[3]) > 1;
}

/* Where a node has no address the kernel offers 0.0.0.0 or ::1, which nobody accepts. */
static __always_inline bool address_is_source(const struct address *addr)
{
	return addr->word[0] || addr->word[1] || addr->word[2] || bpf_ntohl(addr->word[3]) > 1;
}

#endif
