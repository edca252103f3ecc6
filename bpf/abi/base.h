/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses between BPF and user space: addresses and flows, as all of it has them.
 *
 * Every struct and enum that both sides read is in this directory and nowhere else, in
 * a header for each capability. Python does not include them: it reads the same
 * definitions from the BTF of the compiled object and makes numpy dtypes of them.
 * Three rules keep that possible:
 *
 *  - no implicit padding and no bit-fields (-Wpadded is an error here);
 *  - enums, not #defines, for every number that has a name;
 *  - __be16 and __be32 where bytes are in network order, since these typedef
 *    names are what turns them into big-endian dtypes.
 *
 * Addresses are 16 bytes. An IPv6 address fills them; an IPv4 address is the
 * last word, the first three being zero, and a family beside it says which.
 */
#ifndef TOWPATH_ABI_BASE_H
#define TOWPATH_ABI_BASE_H

#include <linux/types.h>

#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* Same numbers as AF_INET and AF_INET6. 0 is an index entry never used. */
enum family {
	FAMILY_NONE = 0,
	FAMILY_V4 = 2,
	FAMILY_V6 = 10,
};
BTF_KEEP(enum family);

struct address {
	__be32 word[4];
};

/* The 5-tuple as it is parsed. The flow hash is taken over it. */
struct flow_key {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 family;
	__u16 _reserved;
};

#pragma GCC diagnostic pop

#endif
