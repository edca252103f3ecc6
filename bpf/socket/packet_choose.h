/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which service a pod's packet is for, and which backend its flow gets: by the same tables, and for
 * a new flow by the same hash, as packets that come from outside.
 */
#ifndef TOWPATH_SOCKET_PACKET_CHOOSE_H
#define TOWPATH_SOCKET_PACKET_CHOOSE_H

#include "lb/clients.h"
#include "lb/flow_table.h"
#include "socket/packet_flow.h"
#include "socket/packet_tracked.h"
#include "socket/service.h"

static __always_inline __u32 packet_service(const struct packet_work *w)
{
	const struct socket_question q = {
		.addr = w->p.flow.daddr,
		.port = w->p.flow.dport,
		.protocol = w->p.flow.protocol,
		.family = w->p.flow.family,
	};

	return socket_service(&q);
}

/* What a set has for the pod, 0 for nothing: see source_in_set(). */
__noinline int packet_source(__u32 set)
{
	struct packet_work *w = packet_work();
	struct source_key key = { .prefixlen = SOURCE_BITS + 128, .set = set };
	const __u32 *value;

	if (!w)
		return 0;
	key.family = w->p.flow.family;
	key.addr = w->p.flow.saddr;
	value = bpf_map_lookup_elem(&sources, &key);
	return value ? *value : 0;
}

/* The table that a new flow of the pod's goes by: see source_route(). */
static __always_inline struct maglev_table packet_table(const struct service *service)
{
	__u32 set = *(const volatile __u32 *)&service->flags >> SERVICE_ROUTES_SHIFT;
	__u32 index = unlikely(set) ? packet_source(set) : 0;
	const struct service *row = index ? bpf_map_lookup_elem(&services, &index) : NULL;
	struct maglev_table table = {};

	if (row)
		table = service_table(row);
	return table.size ? table : service_table(service);
}

/* By the pod's address: see client_backend(). Global, so that the verifier looks at it once. */
__noinline int packet_client(__u32 index, __u32 chosen)
{
	struct packet_work *w = packet_work();

	return w ? client_backend(&w->p.flow, index, true, chosen) : 0;
}

/* For a new flow. NULL: there is none. */
static __always_inline struct backend *packet_choose(const struct packet_work *w,
						     const struct service *service)
{
	struct maglev_table table = packet_table(service);
	bool by_client = service->affinity;
	struct backend *backend;
	__u64 hash;

	backend = by_client ? backend_of(packet_client(w->service, 0)) : NULL;
	if (backend)
		return backend;
	hash = by_client ? hash_client(&w->p.flow, hash_seed)
			 : service_hash(service, &w->p.flow, hash_flow(&w->p.flow, hash_seed));
	backend = backend_of(maglev_lookup(table, hash_scale(hash >> 32, table.size)));
	if (backend && by_client)
		packet_client(w->service, backend->handle);
	return backend;
}

/*
 * The backend of the flow that was found. Of handles of other tables nothing is known, until an
 * agent has looked them up: their flows go on.
 */
static __always_inline bool packet_has_backend(const struct packet_work *w)
{
	const struct backend *backend;
	__u64 to = w->found.to;

	if (to >> 32 != packet_epoch)
		return true;
	backend = backend_of(to);
	return backend && backend->service == w->service;
}

/* The same where a new flow may begin: a SYN, and of the connection nothing but SYNs, or its end. */
static __always_inline bool packet_may_begin_there(const struct packet_work *w)
{
	const struct backend *backend = backend_of(w->found.to);
	struct nat_life life = w->found.life;

	if (!tcp_begins(w->p.flags) || w->found.to >> 32 != packet_epoch)
		return true;
	if (life.client & NAT_ANSWERED && !nat_is_closing(life.client, life.backend))
		return true;
	return backend && takes_flows(backend);
}

/* Whether the flow that was found goes on with its backend. */
static __always_inline bool packet_goes_on(const struct packet_work *w)
{
	return packet_has_backend(w) && !packet_expired(&w->found, w->p.now) &&
	       packet_may_begin_there(w);
}

static __always_inline void packet_count_begun(const struct packet_work *w)
{
	struct packet_counts *counts = packet_count(PACKET_FROM_POD);
	struct packet_state *state = packet_state();

	if (counts)
		counts->begun++;
	if (state && !state->hairpins && address_equal(&w->found.client, &w->found.backend))
		state->hairpins = 1;
}

/* Gives a flow that isn't known a backend. PACKET_FINE, or the verdict. */
__noinline int packet_begin_flow(void)
{
	struct packet_work *w = packet_work();
	const struct service *service;
	const struct backend *backend;
	int result;

	if (!w)
		return PACKET_DROP_FULL;
	service = bpf_map_lookup_elem(&services, &w->service);
	if (!service)
		return PACKET_PASS_NO_SERVICE;
	if (w->p.flags & TCP_RST)
		return PACKET_DROP_NO_FLOW;
	if (!packet_may_bind(w))
		return PACKET_DROP_RATE;
	backend = packet_choose(w, service);
	if (!backend)
		return PACKET_DROP_NO_BACKEND;
	if (backend->family != w->p.flow.family)
		return PACKET_PASS_FAMILY;
	w->handle = backend->handle;
	w->ends.backend = backend->addr;
	w->ends.backend_port = backend->port ? backend->port : w->p.flow.dport;
	w->timeout = jiffies_units(service->flow_timeout, NAT_SEEN_SHIFT);
	result = packet_bind(false);
	if (result == PACKET_NO_ROOM)
		result = packet_bind(true);
	if (result == PACKET_NO_ROOM)
		return PACKET_DROP_FULL;
	if (result == PACKET_BOUND)
		packet_count_begun(w);
	return PACKET_FINE;
}

/* Finds what the packet is translated by, or makes it. PACKET_FINE, or the verdict. */
static __always_inline int packet_translation(struct packet_work *w)
{
	bool found = packet_find(w);

	if (likely(found && packet_goes_on(w))) {
		packet_client_seen(w);
		return packet_owner();
	}
	if (found)
		packet_forget();
	if (tracks && packet_is_tracked())
		return PACKET_PASS_TRACKED;
	return packet_begin_flow();
}

#endif
