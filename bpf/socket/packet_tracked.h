/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pods' flows to services that the kernel itself translates: of who has served these before, and
 * those that are given to it when nothing is translated here any more. Nobody asks where `tracks`
 * is 0.
 */
#ifndef TOWPATH_SOCKET_PACKET_TRACKED_H
#define TOWPATH_SOCKET_PACKET_TRACKED_H

#include "lb/tracked_flows.h"
#include "socket/packet_flow.h"

static __always_inline bool packet_is_giving(void)
{
	const struct packet_state *state = packet_state();

	return state && *(const volatile __u32 *)&state->giving;
}

/* Whether the packet is of a flow of the kernel's; it is of none that is known here. */
__noinline int packet_is_tracked(void)
{
	struct packet_work *w = packet_work();
	struct flow_key key;

	if (!w)
		return 0;
	if (packet_is_giving())
		return 1;
	key = tracked_key(&w->p.flow);
	return tracked_has_key(&key, w->p.flags, true, true);
}

/* Whether the flow that was found was given to the kernel. PACKET_FINE, or the verdict. */
__noinline int packet_given(void)
{
	struct packet_work *w = packet_work();
	const struct packet_flow *f;
	struct flow_key key = {};
	const __u64 *noted;

	if (!w)
		return PACKET_FINE;
	f = &w->found;
	key.saddr = f->client;
	key.daddr = f->vip;
	key.sport = f->client_port;
	key.dport = f->vip_port;
	key.protocol = f->protocol;
	key.family = f->family;
	noted = bpf_map_lookup_elem(&tracked, &key);
	if (!noted)
		return PACKET_FINE;
	return *(const volatile __u64 *)noted == TRACKED_HELD ? PACKET_DROP_MOVING
							      : PACKET_PASS_TRACKED;
}

static __always_inline int packet_owner(void)
{
	return tracks && unlikely(packet_is_giving()) ? packet_given() : PACKET_FINE;
}

#endif
