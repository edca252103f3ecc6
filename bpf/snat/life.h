/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long an entry is kept, by what both sides have sent. */
#ifndef TOWPATH_SNAT_LIFE_H
#define TOWPATH_SNAT_LIFE_H

#include <stdbool.h>

#include <linux/in.h>

#include "abi/snat.h"

/* Set before loading. In units of nat_life.seen. */
const volatile __u32 nat_tcp_open = 0;
const volatile __u32 nat_tcp_new = 0;
const volatile __u32 nat_tcp_closing = 0;
const volatile __u32 nat_udp_open = 0;
const volatile __u32 nat_udp_new = 0;

enum nat_ages {
	NAT_AGE_MAX = 0xffff - 16,
};

/*
 * Units since a packet was seen. Another CPU may have begun the next unit already; what it has
 * seen is young, and not 65,535 units old.
 */
static __always_inline __u16 nat_age(__u16 now, __u16 seen)
{
	__u16 age = now - seen;

	return age > NAT_AGE_MAX ? 0 : age;
}

static __always_inline bool nat_is_closing(__u8 client, __u8 backend)
{
	return (client | backend) & NAT_RST || client & backend & NAT_FIN;
}

static __always_inline __u32 nat_allowed_udp(__u8 client, __u16 timeout)
{
	__u32 open = timeout ?: nat_udp_open;

	if (client & NAT_ANSWERED)
		return open;
	return nat_udp_new < open ? nat_udp_new : open;
}

/* How long such an entry is kept after its last packet. `timeout`: as the entry has it. */
static __always_inline __u32 nat_allowed(__u8 protocol, __u8 client, __u8 backend, __u16 timeout)
{
	if (protocol == IPPROTO_UDP)
		return nat_allowed_udp(client, timeout);
	if (nat_is_closing(client, backend))
		return nat_tcp_closing;
	return client & NAT_ANSWERED ? nat_tcp_open : nat_tcp_new;
}

#endif
