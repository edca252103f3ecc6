/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backends on this node. By dsr and l2 a packet for the node itself has arrived: it passes as it
 * came. Of services that are translated it passes with a note for a tc program, which gives it the
 * backend's address and leaves the client's (bpf/local): the node could not answer to itself.
 *
 * Which backend a flow has is decided here as for any other. Those of such flows are remembered in
 * the flow table, as those that are not translated are.
 */
#ifndef TOWPATH_LB_LOCAL_H
#define TOWPATH_LB_LOCAL_H

#include "abi/snat.h"
#include "lb/counters.h"
#include "lb/flow_table.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "lb/sources.h"
#include "lb/tracked.h"
#include "lb/transmit.h"

enum local_results {
	LOCAL_NOT = VERDICT_MAX, /* to be sent to its backend, like others */
};

/* Whether a backend, which is there, is on this node. */
static __always_inline bool is_local(__u32 handle)
{
	__u32 index = handle & ((1 << HANDLE_INDEX_BITS) - 1);
	const volatile __u64 *local = bpf_map_lookup_elem(&local_backends, &index);

	return local && *local == handle;
}

/* Counts a packet that the stack delivers to a backend here. Returns the verdict. */
static __always_inline __u32 local_pass(const struct lb_ctx *lb, __u32 handle)
{
	struct backend_cpu *stats = backend_stats(lb->cpu, handle & ((1 << HANDLE_INDEX_BITS) - 1));

	if (stats)
		count_sent(lb, stats);
	return VERDICT_LOCAL;
}

/* Has the packet translated for its backend, which is here. Returns the verdict. */
__noinline int local_translate(struct xdp_md *ctx, __u32 slot, __u32 handle)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct backend *backend = backend_of(handle);
	struct service *service;
	int result = VERDICT_LOCAL;
	__u32 id;
	__be16 port;

	if (!lb || !backend)
		return VERDICT_DROP_NO_BACKEND;
	id = backend->service;
	service = bpf_map_lookup_elem(&services, &id);
	if (!service)
		return VERDICT_DROP_NO_BACKEND;
	port = backend->port ?: lb->pkt.flow.dport;
	note_backend(lb, backend);
	TRACE(lb, destination_port, port);
	/* Sent from the backend itself, such as a pod that was sent back here: forged, to the stack. */
	if (address_equal(&lb->pkt.flow.saddr, &backend->addr))
		result = VERDICT_DROP_MARTIAN;
	else if (punt_local(ctx, backend, port,
			    jiffies_units(service->flow_timeout, NAT_SEEN_SHIFT)))
		result = VERDICT_DROP_HEADROOM;
	if (result == VERDICT_LOCAL)
		return local_pass(lb, handle);
	if (!lb->traced)
		count_backend_drop(handle, result);
	return result;
}

/* Has the flow of a service with backends here a known one of these? Its handle, or 0. */
__noinline int local_known(__u32 slot, __u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_place place;
	struct backend *backend;
	struct flow_id flow;

	if (!service || !lb || service->flags & SERVICE_NO_FLOW_TABLE)
		return 0;
	flow = (struct flow_id){
		.key = &lb->pkt.flow,
		.service = id,
		.tcp_flags = lb->pkt.tcp_flags,
	};
	place = flow_place(lb->hash, lb->jiffies);
	backend = backend_of(flow_lookup(&place, &flow));
	if (!backend || !is_local(backend->handle))
		return 0;
	if (tracks && tracked_given(slot))
		return 0;
	if (flow_has_ended(&place, &flow, &service->flow_timeout) ||
	    (flow_begins_anew(&place, &flow) && !takes_flows(backend))) {
		/* What begins may be translated, and its later packets must not find this. */
		if (!(lb->pkt_flags & PKT_NO_LEARN))
			flow_forget(&place);
		return 0;
	}
	if (!(lb->pkt_flags & PKT_NO_LEARN))
		flow_note(&place, &flow);
	TRACE_FLAG(lb, TRACE_FLOW_HIT);
	return backend->handle;
}

/*
 * For a packet of a service that is translated and may have backends here: the verdict if its flow
 * is known to have one of these, else LOCAL_NOT.
 */
__noinline int local_follow(struct xdp_md *ctx, __u32 slot, __u32 id)
{
	/* Before whether it was given, which it may be any moment. */
	bool held = tracks && tracked_held(slot);
	struct lb_ctx *lb = lb_ctx_of(slot);
	__u32 handle = local_known(slot, id);

	if (!lb || !handle)
		return LOCAL_NOT;
	if (held)
		return VERDICT_DROP_NAT_MOVING;
	if (lb->pkt_flags & PKT_FRAG_FIRST)
		slow_path_handle(slot, handle);
	return local_translate(ctx, slot, handle);
}

/* Begins a flow to a backend here. Returns the verdict. */
__noinline int local_begin(struct xdp_md *ctx, __u32 slot, __u32 id, __u32 handle)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_place place;
	struct flow_id flow;

	if (!service || !lb)
		return VERDICT_DROP_NO_BACKEND;
	flow = (struct flow_id){
		.key = &lb->pkt.flow,
		.service = id,
		.tcp_flags = lb->pkt.tcp_flags,
	};
	if (!(service->flags & SERVICE_NO_FLOW_TABLE) && may_be_learnt(lb) &&
	    flow_may_learn(lb->cpu, lb->jiffies)) {
		place = flow_place(lb->hash, lb->jiffies);
		/* It may be there with a backend that it can't stay with. */
		flow_lookup(&place, &flow);
		flow_learn_as(&place, &flow, handle);
	}
	if (!lb->traced)
		count_backend_flow(lb->cpu, handle);
	if (lb->pkt_flags & PKT_FRAG_FIRST)
		slow_path_handle(slot, handle);
	return local_translate(ctx, slot, handle);
}

/*
 * For an ICMP error about an answer of a service that is translated, of which the table of
 * translations knows nothing: LOCAL_NOT if its flow has no backend here.
 */
__noinline int local_error(struct xdp_md *ctx, __u32 slot, __u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct backend *backend;
	__u32 set, handle;

	if (!service || !lb)
		return LOCAL_NOT;
	set = *(const volatile __u32 *)&service->sources;
	if (set && !source_allowed(&lb->pkt.flow, set))
		return VERDICT_DROP_SOURCE;
	lb->jiffies = bpf_jiffies64();
	lb->hash = hash_flow(&lb->pkt.flow, hash_seed);
	TRACE(lb, hash, lb->hash >> 32);
	TRACE_FLAG(lb, TRACE_ERROR);
	handle = local_known(slot, id);
	if (!handle && tracks && tracked_has(slot))
		return LOCAL_NOT;
	if (!handle && !service->affinity) {
		backend = hash_backend(lb, source_table(lb, service),
				       service_hash(service, &lb->pkt.flow, lb->hash) >> 32);
		handle = backend && is_local(backend->handle) ? backend->handle : 0;
	}
	return handle ? local_translate(ctx, slot, handle) : LOCAL_NOT;
}

#endif
