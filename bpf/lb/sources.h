/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sources a service is for, and where new flows of some sources go. */
#ifndef TOWPATH_LB_SOURCES_H
#define TOWPATH_LB_SOURCES_H

#include "lb/maps.h"
#include "lb/context.h"
#include "lb/lookup.h"

/*
 * What the longest prefix of a set that has the address holds, 0 if none has it. The caller has read the set's number once: it may be
 * replaced at any time, and the set that it names is whole until all packets that have read it are
 * through. Global, so that the verifier looks at it once, and told numbers only.
 */
__noinline int source_in_set(__u32 set, __u32 family, __u64 saddr_first, __u64 saddr_last)
{
	struct source_key key = {
		.prefixlen = SOURCE_BITS + 128,
		.set = set,
		.family = family,
	};
	__u32 *word = (__u32 *)key.addr.word, *value;

	word[0] = saddr_first;
	word[1] = saddr_first >> 32;
	word[2] = saddr_last;
	word[3] = saddr_last >> 32;
	value = bpf_map_lookup_elem(&sources, &key);
	return value ? *value : 0;
}

/* The same of the packet's source: whether the service is for it. */
static __always_inline bool source_allowed(const struct flow_key *flow, __u32 set)
{
	const wide64 *saddr = (const wide64 *)&flow->saddr;

	return source_in_set(set, flow->family, saddr[0], saddr[1]);
}

static __always_inline __u32 service_routes(const struct service *service)
{
	return *(const volatile __u32 *)&service->flags >> SERVICE_ROUTES_SHIFT;
}

/*
 * The row by whose table a new flow goes from the packet's source, 0 if that is the service's own.
 * Where no backend of a route takes flows all of the service's do. Global, so that what few services
 * have costs the others one comparison.
 */
__noinline int source_route(__u32 slot, __u32 set)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct service_cpu *stats;
	const struct service *row;
	const wide64 *saddr;
	__u32 index;

	if (!lb)
		return 0;
	saddr = (const wide64 *)&lb->pkt.flow.saddr;
	index = source_in_set(set, lb->pkt.flow.family, saddr[0], saddr[1]);
	row = index ? bpf_map_lookup_elem(&services, &index) : NULL;
	if (!row || !service_table(row).size)
		return 0;
	TRACE_FLAG(lb, TRACE_ROUTE);
	TRACE(lb, route, index);
	stats = may_be_learnt(lb) ? service_stats(lb->cpu, index) : NULL;
	if (stats)
		stats->flows++;
	return index;
}

/* The service, or the row in its place whose table a new flow of the packet's source goes by. */
static __always_inline const struct service *source_table(struct lb_ctx *lb,
							  const struct service *service)
{
	__u32 set = service_routes(service), row;
	const struct service *found;

	if (likely(!set))
		return service;
	row = source_route(lb->slot, set);
	found = row ? bpf_map_lookup_elem(&services, &row) : NULL;
	return found ? found : service;
}

#endif
