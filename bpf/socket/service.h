/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The service of an address, for those who ask with nothing but that. */
#ifndef TOWPATH_SOCKET_SERVICE_H
#define TOWPATH_SOCKET_SERVICE_H

#include "abi/socket.h"
#include "lb/endpoint.h"

/* The index of the service of an address, 0 if there is none; as service_lookup(). */
static __always_inline __u32 socket_service(const struct socket_question *q)
{
	struct vip_key key = {
		.addr = q->addr,
		.port = q->port,
		.protocol = q->protocol,
		.family = q->family,
	};
	__u32 found;

	/* What is for this node only comes first, and is for one port of one address. */
	key.protocol |= VIP_NODE;
	found = endpoint_vip_of(&key);
	if (found)
		return found;
	key.protocol = q->protocol;
	found = endpoint_vip_of(&key);
	if (found)
		return found;
	return endpoint_by_prefix(&key, &q->addr);
}

/* Whether an address is a VIP at all, whatever the port. Not in the hot path. */
static __always_inline bool socket_is_vip(const struct address *addr, __u8 family)
{
	bool v4 = family == FAMILY_V4;
	__u64 lengths = vip_lengths_known(v4);
	struct vip_key key = { .family = family | VIP_PREFIX };

	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		mask_key(&key, addr, v4, lengths & 0xff);
		if (endpoint_vip_of(&key))
			return true;
	}
	return false;
}

#endif
