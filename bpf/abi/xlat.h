/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What packets at tc that are translated leave behind, whatever they are translated for. */
#ifndef TOWPATH_ABI_XLAT_H
#define TOWPATH_ABI_XLAT_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum xlat_marks {
	XLAT_MARK = 0x7470, /* skb->tc_index of what is translated already */
};
BTF_KEEP(enum xlat_marks);

struct xlat_fragment_key {
	struct address saddr;
	struct address daddr;
	__be32 id;
	__u8 protocol; /* as IPv4 headers have it; 0 for IPv6 */
	__u8 family;
	__u16 _reserved;
};

struct xlat_fragment {
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 _reserved;
	__u16 seen; /* in units of nat_life.seen */
};

#pragma GCC diagnostic pop

#endif
