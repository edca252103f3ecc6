/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend an address stands for: the one decision, for the hooks and for test runs.
 *
 * The same tables as packets are balanced by. There is no flow to hash, since a socket that
 * connects may have neither address nor port yet: its cookie stands for it. So datagrams of one
 * socket to one service go to one backend.
 */
#ifndef TOWPATH_SOCKET_DECIDE_H
#define TOWPATH_SOCKET_DECIDE_H

#include "lb/clients.h"
#include "lb/lookup.h"
#include "net/parse.h"
#include "socket/maps.h"
#include "socket/service.h"

enum socket_frame {
	SOCKET_TRIAL_AT = 14, /* behind a link header */
	SOCKET_QUESTION_AT = SOCKET_TRIAL_AT + offsetof(struct socket_trial, question),
	SOCKET_CGROUPS_AT = SOCKET_TRIAL_AT + offsetof(struct socket_trial, cgroups),
	SOCKET_ANSWER_AT = SOCKET_TRIAL_AT + offsetof(struct socket_trial, answer),
};

/*
 * A client on this node is a network namespace: by its cookie, in the place of an address that
 * no packet comes from (100::/64, RFC 6666), it is in the same table as those of packets.
 * Returns the handle of its backend, 0 if it has none that it may stay with. `told`:
 * enum family, and 1 << 8 if the client is to be remembered. Global: see endpoint_vip().
 */
__noinline int socket_client(__u64 netns, __u32 index, __u32 told, __u32 chosen)
{
	struct flow_key flow = { .family = told & 0xff };

	flow.saddr.word[0] = bpf_htonl(0x01000000);
	flow.saddr.word[2] = netns >> 32;
	flow.saddr.word[3] = netns;
	return client_backend(&flow, index, told & 1 << 8, chosen);
}

/* The backend that the socket's datagrams went to, unless it has gone or they have ended. */
static __always_inline struct backend *socket_known(const struct socket_question *q,
						    const struct service *service, __u32 index)
{
	struct backend *backend = backend_of(q->known);
	__u32 idle = service->flow_timeout ? service->flow_timeout : SOCKET_IDLE;

	if (!backend || backend->service != index)
		return NULL;
	return (__u32)(bpf_ktime_get_ns() / SECOND_NS) - q->seen < idle ? backend : NULL;
}

static __always_inline __u64 socket_hash(const struct socket_question *q,
					 const struct service *service)
{
	bool by_client = service->affinity || service->flags & SERVICE_HASH_CLIENT;
	__u64 state = hash_step(hash_seed, by_client ? q->netns : q->socket);

	if (service->flags & SERVICE_HASH_PORT)
		return hash_port(q->port, hash_seed);
	return by_client ? hash_step(state, 0) : hash_step(hash_step(state, q->connects), 0);
}

/* By the client, if the service has affinity; else, or if that isn't known, by Maglev. */
static __always_inline struct backend *socket_choose(const struct socket_question *q,
						     struct socket_answer *a,
						     const struct service *service, bool live)
{
	struct maglev_table table = service_table(service);
	bool by_client = service->affinity;
	__u32 told = q->family | (live ? 1 << 8 : 0);
	struct backend *backend;

	a->by = SOCKET_BY_CLIENT;
	backend = by_client ? backend_of(socket_client(q->netns, a->service, told, 0)) : NULL;
	if (backend)
		return backend;
	a->by = SOCKET_BY_MAGLEV;
	a->hash = socket_hash(q, service) >> 32;
	a->table_base = table.base;
	a->table_size = table.size;
	a->slot = hash_scale(a->hash, table.size);
	backend = backend_of(maglev_lookup(table, a->slot));
	if (backend && by_client && live)
		socket_client(q->netns, a->service, told, backend->handle);
	return backend;
}

/*
 * Whether the process is one that this isn't for. Live hooks ask the kernel for its cgroups, test
 * runs have their ids in the frame.
 */
static __always_inline bool socket_is_off(void *ctx, const bool live)
{
	__u32 zero = 0;
	const struct socket_scope *scope = bpf_map_lookup_elem(&socket_scopes, &zero);
	__u32 off = scope ? scope->off : 0;
	__u64 within = scope ? scope->within : 0;
	bool inside = !within;

	if (!off && !within)
		return false;
	for (__u32 level = 0; level < SOCKET_LEVELS; level++) {
		__u64 id = 0;

		if (live)
			id = bpf_get_current_ancestor_cgroup_id(level);
		else
			bpf_skb_load_bytes(ctx, SOCKET_CGROUPS_AT + level * sizeof(id), &id,
					   sizeof(id));
		if (!id)
			break;
		inside |= id == within;
		if (off && bpf_map_lookup_elem(&socket_off, &id))
			return true;
	}
	return !inside;
}

/*
 * Answers all of a question. `live`: it is a hook's, and clients are remembered; else `ctx` is a
 * frame with a struct socket_trial. `mark`: the socket's.
 */
static __always_inline void socket_decide(void *ctx, const bool live, __u32 mark,
					  const struct socket_question *q, struct socket_answer *a)
{
	struct service *service;
	struct backend *backend;
	__u32 index;

	a->verdict = SOCKET_PASS_PROTOCOL;
	if (q->protocol != IPPROTO_TCP && q->protocol != IPPROTO_UDP)
		return;
	a->verdict = SOCKET_PASS_NO_SERVICE;
	index = socket_service(q);
	service = index ? bpf_map_lookup_elem(&services, &index) : NULL;
	if (!service)
		return;
	a->service = index;
	a->verdict = SOCKET_PASS_CGROUP;
	if (socket_is_off(ctx, live))
		return;
	a->verdict = SOCKET_PASS_CHECK;
	if ((health_mark && mark == health_mark) || is_foreign_mark(mark))
		return;
	a->verdict = SOCKET_PASS_SOURCES;
	if (*(const volatile __u32 *)&service->sources | service->flags >> SERVICE_ROUTES_SHIFT)
		return;
	backend = q->known ? socket_known(q, service, index) : NULL;
	if (backend)
		a->by = SOCKET_BY_NOTE;
	else
		backend = socket_choose(q, a, service, live);
	a->verdict = SOCKET_REFUSE_NO_BACKEND;
	if (!backend) {
		a->by = 0;
		return;
	}
	a->handle = backend->handle;
	a->addr = backend->addr;
	a->family = backend->family;
	a->port = backend->port ? backend->port : q->port;
	a->verdict = a->family == q->family ? SOCKET_BALANCED : SOCKET_PASS_FAMILY;
}

#endif
