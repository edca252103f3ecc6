/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sets of eight entries, of each of which a byte of a word says whether it may be the one. */
#ifndef TOWPATH_NET_TAGS_H
#define TOWPATH_NET_TAGS_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

static const __u64 BYTES_01 = 0x0101010101010101ULL;
static const __u64 BYTES_80 = 0x8080808080808080ULL;

/*
 * Marks the ways whose tag is `tag` by the high bit of their byte. A byte above one
 * that matches can be marked wrongly; the entry itself decides.
 */
static __always_inline __u64 match_tags(__u64 tags, __u8 tag)
{
	__u64 difference = tags ^ BYTES_01 * tag;

	return (difference - BYTES_01) & ~difference & BYTES_80;
}

#endif
