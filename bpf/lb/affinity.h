/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Affinity: new flows of a client go where the one before went.
 *
 * A client that isn't known, or not any more, goes by Maglev and by its address alone.
 * So every load balancer of a group gives a client the same backend, without being told
 * what the others did; the table here only holds the client there while tables change.
 * See flow.h for why no lock is needed.
 */
#ifndef TOWPATH_CLIENT_H
#define TOWPATH_CLIENT_H

#include "lb/flow_table.h"
#include "net/hash.h"
#include "lb/maps.h"
#include "lb/service.h"
#include "lb/context.h"

static const __u64 SECOND_NS = 1000000000ULL;

/* Where a client belongs, and where it was found. */
struct client_place {
	struct client_set *set;
	__u32 hash; /* goes into `ref` */
	__u32 way;  /* CLIENT_WAYS: not found */
	__u32 now;  /* seconds since boot */
};

static __always_inline struct client_place client_place(__u64 hash, __u32 service)
{
	__u64 keyed = hash_step(hash_step(hash, flow_seed), service);
	__u32 set = keyed & client_mask;

	return (struct client_place){
		.set = bpf_map_lookup_elem(&clients, &set),
		.hash = keyed >> 32,
		.way = CLIENT_WAYS,
		.now = bpf_ktime_get_ns() / SECOND_NS,
	};
}

/* Returns the handle that the client was given, however long ago; 0 if it isn't known. */
static __always_inline __u32 client_lookup(struct client_place *place, const struct address *addr,
					   __u32 service)
{
	if (!place->set)
		return 0;
	for (__u32 way = 0; way < CLIENT_WAYS; way++) {
		const struct client *client = &place->set->way[way];
		const __u64 *a = (const __u64 *)&client->addr, *b = (const __u64 *)addr;
		__u64 ref = *(const volatile __u64 *)&client->ref;

		if (!ref || (__u32)ref != place->hash || a[0] != b[0] || a[1] != b[1] ||
		    client->service != service)
			continue;
		place->way = way;
		return ref >> 32;
	}
	return 0;
}

/* A free way, else the one longest unseen. */
static __always_inline __u32 client_victim(const struct client_set *set, __u32 now)
{
	__u32 oldest = 0, victim = 0;

	for (__u32 way = 0; way < CLIENT_WAYS; way++) {
		const struct client *client = &set->way[way];
		__u32 age = client->ref ? now - client->seen : ~0U;

		if (age > oldest) {
			oldest = age;
			victim = way;
		}
	}
	return victim;
}

/* Learns a client, in the entry that it was found in if there was one. */
static __always_inline void client_learn(const struct client_place *place,
					 const struct address *addr, __u32 service, __u32 handle)
{
	struct client *client;
	__u32 way = place->way;

	if (!place->set)
		return;
	if (way == CLIENT_WAYS)
		way = client_victim(place->set, place->now);
	client = &place->set->way[way % CLIENT_WAYS];

	*(volatile __u64 *)&client->ref = 0;
	client->addr = *addr;
	client->service = service;
	client->seen = place->now;
	barrier();
	*(volatile __u64 *)&client->ref = (__u64)handle << 32 | place->hash;
}

/* Whether new flows of a client that was at this backend may still go there. */
static __always_inline bool client_may_stay(const struct client_place *place,
					    const struct service *service,
					    const struct backend *backend)
{
	const struct client *client;

	if (!place->set || !backend || !takes_flows(backend))
		return false;
	client = &place->set->way[place->way % CLIENT_WAYS];
	return place->now - client->seen < service->affinity;
}

/*
 * Returns the handle of the backend for a new flow, 0 if there is none. Global, so that
 * the verifier looks at its loops once.
 */
__noinline int client_backend(__u32 row, __u32 index)
{
	const struct service *service = bpf_map_lookup_elem(&services, &index);
	struct work *w = work_of(row);
	struct client_place place;
	struct backend *backend;
	__u64 hash;

	if (!w || !service)
		return 0;
	hash = hash_client(&w->pkt.flow, hash_seed);
	place = client_place(hash, index);
	backend = backend_of(client_lookup(&place, &w->pkt.flow.saddr, index));
	if (client_may_stay(&place, service, backend)) {
		TRACE_FLAG(w, TRACE_AFFINITY);
		if (!(w->special & SPECIAL_QUIET) && place.set)
			place.set->way[place.way % CLIENT_WAYS].seen = place.now;
		return backend->handle;
	}
	backend = hash_backend(w, service, hash >> 32);
	if (!backend)
		return 0;
	if (!(w->special & SPECIAL_QUIET) && flow_may_learn(w->cpu, w->jiffies))
		client_learn(&place, &w->pkt.flow.saddr, index, backend->handle);
	return backend->handle;
}

#endif
