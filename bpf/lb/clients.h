/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Affinity: new flows of a client go where the one before went.
 *
 * A client that isn't known, or not any more, goes by Maglev and by its address alone.
 * So every load balancer of a group gives a client the same backend, without being told
 * what the others did; the table here only holds the client there while tables change.
 * See struct flow for why no lock is needed.
 */
#ifndef TOWPATH_LB_CLIENTS_H
#define TOWPATH_LB_CLIENTS_H

#include "lb/lookup.h"
#include "lb/maps.h"

static const __u64 SECOND_NS = 1000000000ULL;

/* Where a client belongs, and where it was found. */
struct affinity_place {
	struct client_set *set;
	__u32 hash; /* goes into `ref` */
	__u32 way;  /* CLIENT_WAYS: not found */
	__u32 now;  /* seconds since boot */
};

static __always_inline struct affinity_place affinity_place(__u64 hash, __u32 service)
{
	__u64 keyed = hash_step(hash_step(hash, flow_seed), service);
	__u32 set = keyed & client_mask;

	return (struct affinity_place){
		.set = bpf_map_lookup_elem(&clients, &set),
		.hash = keyed >> 32,
		.way = CLIENT_WAYS,
		.now = bpf_ktime_get_ns() / SECOND_NS,
	};
}

/* Returns the handle that the client was given, however long ago; 0 if it isn't known. */
static __always_inline __u32 affinity_lookup(struct affinity_place *place,
					     const struct address *addr, __u32 service)
{
	if (!place->set)
		return 0;
	for (__u32 way = 0; way < CLIENT_WAYS; way++) {
		const struct client *client = &place->set->way[way];
		const wide64 *a = (const wide64 *)&client->addr, *b = (const wide64 *)addr;
		__u64 ref = *(const volatile __u64 *)&client->ref;

		if (!ref || (__u32)ref != place->hash || a[0] != b[0] || a[1] != b[1] ||
		    client->service != service)
			continue;
		place->way = way;
		return ref >> 32;
	}
	return 0;
}

/* Seconds since a flow of the client began. On another CPU the next second may have begun. */
static __always_inline __u32 affinity_age(const struct client *client, __u32 now)
{
	return client->seen == now + 1 ? 0 : now - client->seen;
}

/* A free way, else the one longest unseen. */
static __always_inline __u32 affinity_victim(const struct client_set *set, __u32 now)
{
	__u32 oldest = 0, victim = 0;

	for (__u32 way = 0; way < CLIENT_WAYS; way++) {
		const struct client *client = &set->way[way];
		__u32 age = client->ref ? affinity_age(client, now) : ~0U;

		if (age > oldest) {
			oldest = age;
			victim = way;
		}
	}
	return victim;
}

/* Learns a client, in the entry that it was found in if there was one. */
static __always_inline void affinity_learn(const struct affinity_place *place,
					   const struct address *addr, __u32 service, __u32 handle)
{
	struct client *client;
	__u32 way = place->way;

	if (!place->set)
		return;
	if (way == CLIENT_WAYS)
		way = affinity_victim(place->set, place->now);
	client = &place->set->way[way % CLIENT_WAYS];

	*(volatile __u64 *)&client->ref = 0;
	client->addr = *addr;
	client->service = service;
	client->seen = place->now;
	barrier();
	*(volatile __u64 *)&client->ref = (__u64)handle << 32 | place->hash;
}

/* Whether new flows of a client that was at this backend may still go there. */
static __always_inline bool affinity_may_stay(const struct affinity_place *place,
					      const struct service *service,
					      const struct backend *backend)
{
	const struct client *client;

	if (!place->set || !backend || !takes_flows(backend))
		return false;
	client = &place->set->way[place->way % CLIENT_WAYS];
	return affinity_age(client, place->now) < service->affinity;
}

/*
 * The handle of the backend of the client that sends `flow`, 0 if it has none that it may stay with.
 * `live`: it is to be remembered that a flow begins. `chosen`: what it gets from now on, if not 0.
 */
static __always_inline __u32 client_backend(const struct flow_key *flow, __u32 index, bool live,
					    __u32 chosen)
{
	const struct service *service = bpf_map_lookup_elem(&services, &index);
	struct affinity_place place;
	struct backend *backend;

	if (!service)
		return 0;
	place = affinity_place(hash_client(flow, hash_seed), index);
	backend = backend_of(affinity_lookup(&place, &flow->saddr, index));
	if (chosen) {
		affinity_learn(&place, &flow->saddr, index, chosen);
		return chosen;
	}
	if (!affinity_may_stay(&place, service, backend))
		return 0;
	if (live && place.set)
		place.set->way[place.way % CLIENT_WAYS].seen = place.now;
	return backend->handle;
}

#endif
