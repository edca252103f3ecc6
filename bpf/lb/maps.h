/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of the load balancer.
 *
 * All are plain arrays: the JIT turns a look-up into a bounds check and an
 * addition. BPF_F_MMAPABLE lets user space write them through a mapping and
 * starts them on a page, so that an entry of 64 bytes is one cache line. Sizes
 * are placeholders that user space sets before it loads the object.
 */
#ifndef TOWPATH_LB_MAPS_H
#define TOWPATH_LB_MAPS_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"
#include "abi/decap.h"
#include "abi/flows.h"
#include "abi/health.h"
#include "abi/lb.h"
#include "abi/net.h"
#include "abi/quic.h"
#include "abi/trace.h"
#include "lb/array_map.h"

struct flow_set {
	struct flow way[FLOW_WAYS];
};

struct fragment_set {
	struct fragment way[FRAGMENT_WAYS];
};

struct client_set {
	struct client way[CLIENT_WAYS];
};

ARRAY_MAP(vips, struct vip_slot);
ARRAY_MAP(vip_lengths, struct vip_lengths);
ARRAY_MAP(port_pages, struct port_page);
ARRAY_MAP(services, struct service);
ARRAY_MAP(quic_forms, __u64); /* by the index of a service */
ARRAY_MAP(quic_servers, struct quic_server);
ARRAY_MAP(maglev, struct maglev_line); /* services own ranges of slots */
ARRAY_MAP(backends, struct backend);
ARRAY_MAP(local_backends, __u64); /* handles, by the index of a backend */
ARRAY_MAP(flow_tags, __u64);	  /* a byte for each way of a set */
ARRAY_MAP(flows, struct flow_set);
ARRAY_MAP(fragments, struct fragment_set);
ARRAY_MAP(clients, struct client_set);
ARRAY_MAP(settings, struct settings);
ARRAY_MAP(ways, struct ways);
ARRAY_MAP(traces, struct trace);

/* One row for each possible CPU: cpu * (number of columns) + column. */
ARRAY_MAP(backend_cpus, struct backend_cpu);
ARRAY_MAP(backend_flows, __u64); /* packets that no flow entry matched */
ARRAY_MAP(service_cpus, struct service_cpu);
ARRAY_MAP(quic_cpus, struct quic_cpu);
ARRAY_MAP(verdict_cpus, struct verdict_cpu);
ARRAY_MAP(flow_cpus, struct flow_cpu);
ARRAY_MAP(health_cpus, struct health_cpu);

/* A trie rather than an array: only services that are not for everyone ask it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct source_key);
	__type(value, __u32);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct vlan_key);
	__type(value, __u32); /* ifindex of the VLAN device */
} vlan_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* ifindex of any device */
	__type(value, struct egress_device);
} egress_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct refusal);
	__type(value, __u64);
} refusals SEC(".maps");

/* An entry outlives its connection, whose last packets come after its end: the oldest go. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct health_key);
	__type(value, struct health_probe);
} health_probes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, HEALTH_FOREIGN);
	__type(key, __u32); /* a mark of other programs' checks */
	__type(value, struct health_probe);
} health_foreign SEC(".maps");

/* Where one is put together: at tc nothing comes in between on its CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct health_probe);
} health_scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, __u64); /* until when, of UDP */
} tracked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct backend_drop);
	__type(value, __u64); /* packets */
} backend_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct decap_key); /* outer destinations that are unwrapped for */
	__type(value, struct decap_counters);
} unwrap_addresses SEC(".maps");

/* Set before loading; the verifier sees constants. */
const volatile __u64 hash_seed = 0;    /* the same on every node of a group */
const volatile __u64 flow_seed = 0;    /* random: where a flow lies can't be guessed */
const volatile __u64 trace_cookie = 0; /* random; 0 = no tracing */
const volatile __u32 vip_mask = 0;     /* entries - 1 */
const volatile __u32 quic_mask = 0;    /* the same */
const volatile __u32 flow_mask = 0;    /* sets - 1 */
const volatile __u32 flow_learn = FLOW_LEARN;
const volatile __u32 flow_idle = 0xffff; /* in units of flow.seen: an older one has ended */
const volatile __u32 jiffies_a_second = 1000;
const volatile __u32 fragment_mask = 0; /* sets - 1 */
const volatile __u32 client_mask = 0;	/* sets - 1 */
const volatile __u32 services_max = 1;	/* columns of service_cpus */
const volatile __u32 backends_max = 1;	/* columns of backend_cpus and backend_flows */
const volatile __u32 tracks = 0;	/* 1: flows may be in `tracked` */
const volatile __u64 tracks_udp = 0;	/* ns that one of UDP lasts after a packet */
const volatile __u32 health_mark = 0;	/* of packets of health checks, 0 = there are none */
const volatile __u32 foreign_marks = 0; /* the bits that marks of others' checks have in common */

static __always_inline bool is_foreign_mark(__u32 mark)
{
	return foreign_marks && (mark & ~((1U << HEALTH_FOREIGN_BITS) - 1)) == foreign_marks;
}

static __always_inline struct backend_cpu *backend_stats(__u32 cpu, __u32 backend)
{
	__u32 i = cpu * backends_max + backend;

	return bpf_map_lookup_elem(&backend_cpus, &i);
}

static __always_inline struct service_cpu *service_stats(__u32 cpu, __u32 service)
{
	__u32 i = cpu * services_max + service;

	return bpf_map_lookup_elem(&service_cpus, &i);
}

static __always_inline void count_verdict(__u32 cpu, __u32 verdict)
{
	struct verdict_cpu *stats = bpf_map_lookup_elem(&verdict_cpus, &cpu);
	const __u32 mask = sizeof(stats->packets) / sizeof(stats->packets[0]) - 1;

	_Static_assert((sizeof(stats->packets) / sizeof(stats->packets[0]) &
			(sizeof(stats->packets) / sizeof(stats->packets[0]) - 1)) == 0,
		       "a mask keeps the index in bounds");
	/* Before 6.3 the verifier forgets a number's range on its way through the stack. */
	if (!__builtin_constant_p(verdict))
		barrier_var(verdict);
	if (stats)
		stats->packets[verdict & mask]++;
}

#endif
