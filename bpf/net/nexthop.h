/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A next hop, kept by whoever asked for it on this CPU until the next jiffy (1 to 10 ms): long
 * enough that a busy one is looked up once in thousands of packets, short enough that a route or
 * a neighbour that changes is followed at once. Nothing has to be told to forget.
 */
#ifndef TOWPATH_NET_NEXTHOP_H
#define TOWPATH_NET_NEXTHOP_H

#include <stdbool.h>

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi/net.h"
#include "net/wide.h"

/*
 * Beside the index of a device, which is a positive int: the way is to the host itself
 * and to no gateway. So ways of either kind are never taken for the other.
 */
static const __u32 HOP_L2 = 1U << 31;

/* Whether what was found earlier is from this jiffy, and for packets that came in like this one. */
static __always_inline bool hop_holds(const struct next_hop *hop, __u32 tick, __u32 rx_ifindex,
				      __be16 rx_vlan)
{
	return hop->tick == tick && hop->rx_ifindex == rx_ifindex && hop->rx_vlan == rx_vlan;
}

/* The same for packets without a tag, which leave without one too: both are compared at once. */
static __always_inline bool hop_holds_untagged(const struct next_hop *hop, __u32 tick,
					       __u32 rx_ifindex)
{
	return hop->tick == tick && hop->rx_ifindex == rx_ifindex &&
	       !*(const wide32 *)&hop->rx_vlan;
}

/* One that is yet to be found. */
static __always_inline void hop_begin(struct next_hop *hop, __u32 tick, __u32 rx_ifindex,
				      __be16 rx_vlan)
{
	__builtin_memset(hop, 0, sizeof(*hop));
	hop->tick = tick;
	hop->rx_ifindex = rx_ifindex;
	hop->rx_vlan = rx_vlan;
}

#endif
