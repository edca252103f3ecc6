/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a packet's destination to its service, and from its flow to a backend by Maglev. */
#ifndef TOWPATH_LB_SERVICE_H
#define TOWPATH_LB_SERVICE_H

#include "net/hash.h"
#include "lb/context.h"
#include "lb/lookup.h"

/*
 * Returns the service of the destination's port under one prefix, 0 if there is none.
 * Global, so that the verifier looks at its loop once.
 */
__noinline int prefix_service(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	__u32 page = lb ? vip_find(&lb->prefix) : 0;

	return page ? port_lookup(page, bpf_ntohs(lb->pkt.flow.dport)) : 0;
}

/* The service of a destination among the prefixes, the longest first; 0 if none has its port. */
static __noinline __u32 vip_prefix_lookup(struct lb_ctx *lb)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	__u64 lengths = vip_lengths_with_ports(v4);

	lb->prefix.protocol = lb->pkt.flow.protocol;
	lb->prefix.family = lb->pkt.flow.family | VIP_PREFIX;
	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		__u32 service;

		mask_key(&lb->prefix, &lb->pkt.flow.daddr, v4, lengths & 0xff);
		service = prefix_service(lb->slot);
		if (service)
			return service;
	}
	return 0;
}

/* Whether there is a key for the prefix, such as those that say what addresses are VIPs. */
__noinline int prefix_known(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	return lb ? vip_find(&lb->prefix) : 0;
}

/* Whether the destination is a VIP at all, whatever the port. Not in the hot path. */
__noinline int vip_known(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	__u64 lengths;
	bool v4;

	if (!lb)
		return 0;
	v4 = lb->pkt.flow.family == FAMILY_V4;
	lengths = vip_lengths_known(v4);
	lb->prefix.protocol = 0;
	lb->prefix.family = lb->pkt.flow.family | VIP_PREFIX;
	for (__u32 i = 0; i < VIP_LENGTHS && lengths; i++, lengths >>= 8) {
		mask_key(&lb->prefix, &lb->pkt.flow.daddr, v4, lengths & 0xff);
		if (prefix_known(slot))
			return 1;
	}
	return 0;
}

/* Returns the index of the service of that very address and port, 0 if there is none. */
static __always_inline __u32 service_exact(const struct flow_key *flow)
{
	struct vip_key key = {
		.addr = flow->daddr,
		.port = flow->dport,
		.protocol = flow->protocol,
		.family = flow->family,
	};

	return vip_find(&key);
}

/* The same by its address or a prefix. `exact`: what service_exact() has said. */
static __always_inline __u32 service_lookup(struct lb_ctx *lb, __u32 exact)
{
	if (likely(exact) || likely(!vip_lengths_with_ports(lb->pkt.flow.family == FAMILY_V4)))
		return exact;
	return vip_prefix_lookup(lb);
}

/* The backend that Maglev gives a hash, NULL if the service has none. */
static __always_inline struct backend *hash_backend(struct lb_ctx *lb,
						    const struct service *service, __u32 hash)
{
	struct maglev_table table = service_table(service);
	__u32 slot = hash_scale(hash, table.size);
	struct backend *backend = backend_of(maglev_lookup(table, slot));

	struct trace *trace = trace_of(lb);

	if (trace) {
		trace->hash = hash;
		trace->slot = slot;
		trace->table_base = table.base;
		trace->table_size = table.size;
		trace->flags |= backend ? TRACE_MAGLEV : 0;
	}
	return backend;
}

#endif
