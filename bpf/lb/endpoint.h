/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The service of an address and port, for those who have no packet of the XDP program's. */
#ifndef TOWPATH_LB_ENDPOINT_H
#define TOWPATH_LB_ENDPOINT_H

#include "lb/lookup.h"

/*
 * What the slot of a VIP holds, 0 if there is none. `tail`: the last three fields of its
 * key. Global, so that the verifier looks at its loop once; of numbers, since before 5.12
 * such functions take no pointers.
 */
__noinline int endpoint_vip(__u64 high, __u64 low, __u32 tail)
{
	struct vip_key key = {};

	key.addr.word[0] = high;
	key.addr.word[1] = high >> 32;
	key.addr.word[2] = low;
	key.addr.word[3] = low >> 32;
	*(__u32 *)&key.port = tail;
	return vip_find(&key);
}

static __always_inline __u32 endpoint_vip_of(const struct vip_key *key)
{
	return endpoint_vip(key->addr.word[0] | (__u64)key->addr.word[1] << 32,
			    key->addr.word[2] | (__u64)key->addr.word[3] << 32,
			    *(const __u32 *)&key->port);
}

/* The service of an address by a prefix, the longest first; 0 if none has its port. `key`: its own. */
static __always_inline __u32 endpoint_by_prefix(struct vip_key *key, const struct address *addr)
{
	bool v4 = key->family == FAMILY_V4;
	__u64 lengths = vip_lengths_with_ports(v4);
	__be16 port = key->port;

	key->family |= VIP_PREFIX;
	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		__u32 page, found;

		mask_key(key, addr, v4, lengths & 0xff);
		page = endpoint_vip_of(key);
		found = page ? port_lookup(page, bpf_ntohs(port)) : 0;
		if (found)
			return found;
	}
	return 0;
}

#endif
