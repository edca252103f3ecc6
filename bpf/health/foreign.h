/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Checks of other programs: their sockets have a mark that stands for a backend, and are connected
 * to a VIP. What is at that destination says in which way packets go.
 */
#ifndef TOWPATH_HEALTH_FOREIGN_H
#define TOWPATH_HEALTH_FOREIGN_H

#include "lb/endpoint.h"
#include "lb/maps.h"

/*
 * The index of the service of a destination, 0 if there is none. `tail`: as that of a struct vip_key.
 * Global, of numbers: of the family the verifier then knows nothing.
 */
__noinline int foreign_service(__u64 high, __u64 low, __u32 tail)
{
	__u32 found = endpoint_vip(high, low, tail);
	struct vip_key key = {};
	struct address addr;

	if (found)
		return found;
	addr.word[0] = high;
	addr.word[1] = high >> 32;
	addr.word[2] = low;
	addr.word[3] = low >> 32;
	*(__u32 *)&key.port = tail;
	return endpoint_by_prefix(&key, &addr);
}

static __always_inline struct service *foreign_service_of(const struct flow_key *flow)
{
	struct vip_key key = {
		.addr = flow->daddr,
		.port = flow->dport,
		.protocol = flow->protocol,
		.family = flow->family,
	};
	__u32 index = foreign_service(key.addr.word[0] | (__u64)key.addr.word[1] << 32,
				      key.addr.word[2] | (__u64)key.addr.word[3] << 32,
				      *(const __u32 *)&key.port);

	return index ? bpf_map_lookup_elem(&services, &index) : NULL;
}

/*
 * What is known of such a packet; NULL if its mark is no backend's, its destination of no service,
 * or of one whose backends don't have the VIP.
 */
static __always_inline struct health_probe *foreign_probe(const struct packet *pkt, __u32 mark)
{
	const struct health_probe *known = bpf_map_lookup_elem(&health_foreign, &mark);
	const struct service *service = known ? foreign_service_of(&pkt->flow) : NULL;
	struct health_probe *probe;
	__u32 zero = 0, flags;

	if (!service)
		return NULL;
	flags = service->flags;
	if (flags & SERVICE_SNAT ||
	    (pkt->flow.family == FAMILY_V6 && known->to.family == FAMILY_V4))
		return NULL;
	probe = bpf_map_lookup_elem(&health_scratch, &zero);
	if (!probe)
		return NULL;
	*probe = *known;
	probe->family = pkt->flow.family;
	probe->way = flags & SERVICE_L2 ? HEALTH_L2 : HEALTH_TUNNEL;
	probe->encap = flags & SERVICE_ENCAP ? service->encap : ENCAP_IPIP;
	return probe;
}

#endif
