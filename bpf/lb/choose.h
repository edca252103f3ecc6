/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend a packet of a service goes to. */
#ifndef TOWPATH_LB_CHOOSE_H
#define TOWPATH_LB_CHOOSE_H

#include "lb/affinity.h"
#include "lb/flow_table.h"
#include "lb/known.h"
#include "lb/quic.h"
#include "lb/service.h"
#include "lb/sources.h"

/* For a packet that belongs to no flow that is known. */
static __always_inline struct backend *new_backend(struct lb_ctx *lb, const struct service *service,
						   __u32 index)
{
	if (likely(!service->affinity))
		return hash_backend(lb, source_table(lb, service),
				    service_hash(service, &lb->pkt.flow, lb->hash) >> 32);
	return backend_of(affinity_backend(lb->slot, index));
}

/* For a packet of a service whose connection ids may name backends: the one that is named, or NULL. */
static __always_inline struct backend *named_backend(struct xdp_md *ctx, struct lb_ctx *lb,
						     __u32 index, bool *fresh)
{
	struct backend *backend = backend_of(quic_backend(ctx, lb->slot, index));

	if (backend)
		*fresh = quic_note(lb->slot, index, backend->handle);
	return backend;
}

/*
 * The flow's backend by its connection id, if the service goes by these; else by the flow table, else
 * by Maglev, which the table then learns.
 */
static __always_inline struct backend *choose_backend(struct xdp_md *ctx, struct lb_ctx *lb,
						      const struct service *service, __u32 index,
						      bool *fresh)
{
	struct flow_id id = {
		.key = &lb->pkt.flow,
		.service = index,
		.tcp_flags = lb->pkt.tcp_flags,
	};
	struct flow_place place;
	struct backend *backend;

	if (unlikely(service->flags & SERVICE_QUIC)) {
		backend = named_backend(ctx, lb, index, fresh);
		if (backend)
			return backend;
	}
	if (service->flags & SERVICE_NO_FLOW_TABLE) {
		*fresh = true;
		return new_backend(lb, service, index);
	}

	place = flow_place(lb->hash, lb->jiffies);
	backend = known_backend(&place, &id, service);
	if (likely(backend)) {
		if (likely(!(lb->pkt_flags & PKT_NO_LEARN)))
			flow_note(&place, &id);
		TRACE_FLAG(lb, TRACE_FLOW_HIT);
		return backend;
	}
	*fresh = !(id.tcp_flags & TCP_RST);
	backend = new_backend(lb, service, index);
	if (backend && may_be_learnt(lb) && flow_may_learn(lb->cpu, lb->jiffies))
		flow_learn_as(&place, &id, backend->handle);
	return backend;
}

#endif
