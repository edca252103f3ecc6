/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows to backends on this node that their backend resets. What the load balancer remembers of a
 * flow it has from the client's packets, and a client that is reset sends none: its port may come
 * again for another connection at once, which mustn't be taken for this one while its backend is
 * leaving.
 */
#ifndef TOWPATH_LOCAL_END_H
#define TOWPATH_LOCAL_END_H

#include "lb/flow_table.h"
#include "socket/packet_maps.h"

/* A service's flows are of one family: of an address of IPv4 nothing but the last word counts. */
static __always_inline bool local_is_flow(const struct flow *flow, const struct packet_flow *ended)
{
	if (flow->sport != ended->client_port)
		return false;
	if (ended->family == FAMILY_V4)
		return flow->saddr.word[3] == ended->client.word[3];
	return address_equal(&flow->saddr, &ended->client);
}

/* Notes in the set that a flow is over, whichever service had it. */
static __always_inline void local_end_in(struct flow_set *set, __u64 matches, __u32 hash,
					 const struct packet_flow *ended)
{
	struct flow *flow = set->way;

#pragma clang loop unroll(disable)
	for (__u32 way = 0; way < FLOW_WAYS; way++, flow++, matches >>= 8) {
		__u64 ref = *(volatile __u64 *)&flow->ref;

		if (!(matches & 0x80) || (__u32)ref != hash || !local_is_flow(flow, ended))
			continue;
		flow->service = (flow->service & ~FLOW_STATE) | FLOW_ENDING;
	}
}

/* Has the load balancer know that the flow that was found is over. */
__noinline int local_end_flow(void)
{
	struct packet_work *w = packet_work();
	struct flow_place place;
	struct flow_key key;
	struct flow_set *set;
	__u64 matches;

	if (!w)
		return 0;
	__builtin_memset(&key, 0, sizeof(key));
	key.saddr = w->found.client;
	key.daddr = w->found.vip;
	key.sport = w->found.client_port;
	key.dport = w->found.vip_port;
	key.protocol = w->found.protocol;
	key.family = w->found.family;
	place = flow_place(hash_flow(&key, hash_seed), 0);
	if (!place.tags)
		return 0;
	matches = match_tags(*(volatile __u64 *)place.tags, place.tag);
	set = matches ? bpf_map_lookup_elem(&flows, &place.set) : NULL;
	if (set)
		local_end_in(set, matches, place.hash, &w->found);
	return 0;
}

#endif
