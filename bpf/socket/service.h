/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The service of an address, for those who ask with nothing but that. */
#ifndef TOWPATH_SOCKET_SERVICE_H
#define TOWPATH_SOCKET_SERVICE_H

#include "abi/socket.h"
#include "lb/lookup.h"

/*
 * What the slot of a VIP holds, 0 if there is none. `tail`: the last three fields of its
 * key. Global, so that the verifier looks at its loop once; of numbers, since before 5.12
 * such functions take no pointers.
 */
__noinline int socket_vip(__u64 high, __u64 low, __u32 tail)
{
	struct vip_key key = {};

	key.addr.word[0] = high;
	key.addr.word[1] = high >> 32;
	key.addr.word[2] = low;
	key.addr.word[3] = low >> 32;
	*(__u32 *)&key.port = tail;
	return vip_find(&key);
}

static __always_inline __u32 socket_vip_of(const struct vip_key *key)
{
	return socket_vip(key->addr.word[0] | (__u64)key->addr.word[1] << 32,
			  key->addr.word[2] | (__u64)key->addr.word[3] << 32,
			  *(const __u32 *)&key->port);
}

/* The index of the service of an address, 0 if there is none; as service_lookup(). */
static __always_inline __u32 socket_service(const struct socket_question *q)
{
	bool v4 = q->family == FAMILY_V4;
	struct vip_key key = {
		.addr = q->addr,
		.port = q->port,
		.protocol = q->protocol,
		.family = q->family,
	};
	__u64 lengths;
	__u32 found;

	/* What is for this node only comes first, and is for one port of one address. */
	key.protocol |= VIP_NODE;
	found = socket_vip_of(&key);
	if (found)
		return found;
	key.protocol = q->protocol;
	found = socket_vip_of(&key);
	if (found)
		return found;
	lengths = vip_lengths_with_ports(v4);
	key.family |= VIP_PREFIX;
	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		__u32 page;

		mask_key(&key, &q->addr, v4, lengths & 0xff);
		page = socket_vip_of(&key);
		found = page ? port_lookup(page, bpf_ntohs(q->port)) : 0;
		if (found)
			return found;
	}
	return 0;
}

/* Whether an address is a VIP at all, whatever the port. Not in the hot path. */
static __always_inline bool socket_is_vip(const struct address *addr, __u8 family)
{
	bool v4 = family == FAMILY_V4;
	__u64 lengths = vip_lengths_known(v4);
	struct vip_key key = { .family = family | VIP_PREFIX };

	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		mask_key(&key, addr, v4, lengths & 0xff);
		if (socket_vip_of(&key))
			return true;
	}
	return false;
}

#endif
