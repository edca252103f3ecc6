/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses, of either family: 16 bytes in both. */
#ifndef TOWPATH_NET_ADDRESS_H
#define TOWPATH_NET_ADDRESS_H

#include <stdbool.h>

#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"

static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[1] == y[1] && x[0] == y[0];
}

/* Where a node has no address the kernel offers 0.0.0.0 or ::1, which nobody accepts. */
static __always_inline bool address_is_source(const struct address *addr)
{
	return addr->word[0] || addr->word[1] || addr->word[2] || bpf_ntohl(addr->word[3]) > 1;
}

#endif
