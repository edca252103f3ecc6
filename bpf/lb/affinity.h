/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Affinity of packets: what becomes of a flow that isn't known, by its client. */
#ifndef TOWPATH_LB_AFFINITY_H
#define TOWPATH_LB_AFFINITY_H

#include "lb/clients.h"
#include "lb/context.h"
#include "lb/flow_table.h"
#include "lb/service.h"
#include "lb/sources.h"
#include "net/hash.h"

/* The backend that its client is known to have, for a new flow; NULL if it isn't. */
static __always_inline struct backend *affinity_known(struct lb_ctx *lb, __u32 index,
						      const struct service *service,
						      struct affinity_place *place, __u64 hash)
{
	struct backend *backend;

	*place = affinity_place(hash, index);
	backend = backend_of(affinity_lookup(place, &lb->pkt.flow.saddr, index));
	if (!affinity_may_stay(place, service, backend))
		return NULL;
	TRACE_FLAG(lb, TRACE_AFFINITY);
	if (may_be_learnt(lb) && place->set)
		place->set->way[place->way % CLIENT_WAYS].seen = place->now;
	return backend;
}

/*
 * Returns the handle of the backend for a new flow, 0 if there is none. Global, so that
 * the verifier looks at its loops once.
 */
__noinline int affinity_backend(__u32 slot, __u32 index)
{
	const struct service *service = bpf_map_lookup_elem(&services, &index);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct affinity_place place;
	struct backend *backend;
	__u64 hash;

	if (!lb || !service)
		return 0;
	hash = hash_client(&lb->pkt.flow, hash_seed);
	backend = affinity_known(lb, index, service, &place, hash);
	if (backend)
		return backend->handle;
	backend = hash_backend(lb, source_table(lb, service), hash >> 32);
	if (!backend)
		return 0;
	if (may_be_learnt(lb) && flow_may_learn(lb->cpu, lb->jiffies))
		affinity_learn(&place, &lb->pkt.flow.saddr, index, backend->handle);
	return backend->handle;
}

#endif
