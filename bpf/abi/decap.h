/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The program on a backend. `addresses` is a per-CPU hash from decap_key to
 * decap_counters; `verdicts` is one decap_cpu for each CPU. Every frame adds one
 * to exactly one verdict. PASS_* leave the frame as it came.
 */
#ifndef TOWPATH_ABI_DECAP_H
#define TOWPATH_ABI_DECAP_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

struct decap_key {
	struct address addr; /* outer destination */
	__u32 family;	     /* enum family */
};

struct decap_counters {
	__u64 packets;
	__u64 bytes; /* of the inner packets, as their headers say */
};

enum decap_verdict {
	DECAP_UNWRAPPED = 0,
	DECAP_PASS_OTHER,     /* not a tunnel packet for one of the addresses */
	DECAP_PASS_FRAGMENT,  /* a fragment of one: the kernel's to reassemble */
	DECAP_DROP_MALFORMED, /* for one of them, and either header is nonsense */
	DECAP_DROP_ECN,	      /* RFC 6040: outer CE, inner not ECN-capable */
	DECAP_DROP_ADJUST,    /* the driver would not move the frame's start */
	DECAP_MAX,
};
BTF_KEEP(enum decap_verdict);

struct decap_cpu {
	__u64 packets[8]; /* by enum decap_verdict */
};

#pragma GCC diagnostic pop

#endif
