/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of masquerade, and what a packet is worked out in. */
#ifndef TOWPATH_MASQUERADE_MAPS_H
#define TOWPATH_MASQUERADE_MAPS_H

#include "abi/masquerade.h"
#include "lb/array_map.h"
#include "net/hash.h"
#include "xlat/packet.h"

struct masq_set {
	struct masquerade_flow way[NAT_WAYS];
};

struct masq_lock {
	struct bpf_spin_lock lock;
};

ARRAY_MAP(masq_heads, struct masquerade_head);
ARRAY_MAP(masq_flows, struct masq_set);
ARRAY_MAP(masq_sources, struct masquerade_source);
ARRAY_MAP(masq_states, struct masquerade_state);
ARRAY_MAP(masq_learning, struct masquerade_learning);
ARRAY_MAP(masq_ports, struct masquerade_ports);	       /* by protocol: 0 TCP, 1 UDP */
ARRAY_MAP(masq_decisions, struct masquerade_decision); /* cpu * MASQ_DECISIONS + some */
ARRAY_MAP(masq_known_pods, struct masquerade_pod);     /* cpu * MASQ_KNOWN_PODS + some */

/* Apart from the sets: the kernel maps no array with locks in it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct masq_lock);
} masq_locks SEC(".maps");

#define MASQ_MAP(name, map_type, entries, flags, key_type, value_type) \
	struct {                                                       \
		__uint(type, BPF_MAP_TYPE_##map_type);                 \
		__uint(map_flags, flags);                              \
		__uint(max_entries, entries);                          \
		__type(key, key_type);                                 \
		__type(value, value_type);                             \
	} name SEC(".maps")

MASQ_MAP(masq_pods4, LPM_TRIE, 4096, BPF_F_NO_PREALLOC, struct masquerade_prefix4, __u32);
MASQ_MAP(masq_pods6, LPM_TRIE, 4096, BPF_F_NO_PREALLOC, struct masquerade_prefix6, __u32);
MASQ_MAP(masq_spared4, LPM_TRIE, 16384, BPF_F_NO_PREALLOC, struct masquerade_prefix4, __u32);
MASQ_MAP(masq_spared6, LPM_TRIE, 16384, BPF_F_NO_PREALLOC, struct masquerade_prefix6, __u32);
/* For kernels whose FIB names no source: the number of it, by device and destination. */
MASQ_MAP(masq_routes4, LPM_TRIE, 65536, BPF_F_NO_PREALLOC, struct masquerade_prefix4, __u32);
MASQ_MAP(masq_routes6, LPM_TRIE, 65536, BPF_F_NO_PREALLOC, struct masquerade_prefix6, __u32);
MASQ_MAP(masq_numbers, HASH, MASQ_SOURCES, 0, struct masquerade_address, __u32);
MASQ_MAP(masq_devices, HASH, 8192, 0, __u32, struct masquerade_device);
MASQ_MAP(masq_inbound, LRU_HASH, 65536, 0, struct flow_key, struct masquerade_inbound);
MASQ_MAP(masq_mappings, LRU_HASH, 1, 0, struct masquerade_endpoint, struct masquerade_mapping);
MASQ_MAP(masq_counts, PERCPU_ARRAY, MASQ_PROGRAMS, 0, __u32, struct masquerade_counts);

/* Set before loading. */
const volatile __u32 masq_mask = 0; /* sets - 1 */
const volatile __u32 masq_port_first = 0;
const volatile __u32 masq_port_count = 0;
const volatile __u32 masq_rate = 0;	   /* new flows in a jiffy and CPU */
const volatile __u32 masq_independent = 0; /* endpoint-independent mapping */
const volatile __u32 masq_open = 0;	   /* endpoint-independent filtering as well */
const volatile __u32 masq_own_routes = 0;  /* sources are in masq_routes4 and 6 */
const volatile __u32 masq_through_stack = 0;
const volatile __u32 masq_pass_unsolicited = 0;

/* Where in the table a flow is looked for, or is to be put. */
struct masq_search {
	__u64 keyed; /* the client's flow, keyed */
	__u64 base;  /* of all candidates: the remote and the protocol */
	__u64 key;   /* of the candidate */
	__u64 ref;   /* of the entry found */
	__u32 first; /* candidate, and how far it is from each to the next */
	__u32 stride;
	__u32 number;
	__u32 own;   /* the candidate's own way in its set */
	__u32 home;  /* the first one's set */
	__u32 depth; /* `reach` of that */
	__u32 set;
	__u32 way;   /* NAT_WAYS: not found */
	__u32 full;  /* candidates whose set was full */
	__u32 reply; /* hash for `ref` */
	__u32 rank;  /* of a way, and the best so far */
	__u32 best;
	__u32 ifindex; /* of the entry found */
	__be16 port;   /* of the candidate, or the entry found */
	__u16 source;
	__u16 generation;
	__u16 now; /* in units of nat_life.seen */
	__u8 forward_tag;
	__u8 reply_tag;
	__u8 stale; /* found, and its address has gone */
	__u8 _reserved;
};

enum masq_go {
	MASQ_FINE = -1, /* else an enum masquerade_verdict */
};

/* A packet on its way. `p.flow`: of a client's: client to remote; of an answer: as it came. */
struct masq_work {
	struct xlat_packet p;
	/*
	 * Whose way is looked up: the flow, or as much of it as tells ways apart. Where sources don't,
	 * the rule is in their place; _reserved has the type of service, and MASQ_OUT for a pod's.
	 */
	struct flow_key way;
	struct masq_search search;
	__u32 decision; /* where it is kept */
	__u32 rule;	/* for a pod's packet */
	__u32 egress;
	__u32 rx_ifindex; /* the device that it came in by */
	__u32 begun_at;	  /* low jiffies, in which ... */
	__u32 begun;	  /* ... so many flows have begun here */
	__u8 known;	  /* the flow was in the table, and is over */
	__u8 _reserved[7];
};

MASQ_MAP(masq_works, PERCPU_ARRAY, 1, 0, __u32, struct masq_work);

static __always_inline struct masq_work *masq_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&masq_works, &zero);
}

static __always_inline struct xlat_packet *xlat_packet(void)
{
	struct masq_work *w = masq_work();

	return w ? &w->p : NULL;
}

static __always_inline struct masquerade_decision *masq_decision(const struct masq_work *w)
{
	__u32 at = w->decision;

	return bpf_map_lookup_elem(&masq_decisions, &at);
}

static __always_inline __u64 masq_seed(void)
{
	__u32 zero = 0;
	const struct masquerade_state *state = bpf_map_lookup_elem(&masq_states, &zero);

	return state ? state->seed : 0;
}

static __always_inline __u64 xlat_seed(void)
{
	return masq_seed();
}

/* The number of an address that packets are translated to; MASQ_NO_SOURCE: it is none. */
static __always_inline __u32 masq_number(const struct address *address, __u8 family)
{
	struct masquerade_address key = { .address = *address, .family = family };
	__u32 *number = bpf_map_lookup_elem(&masq_numbers, &key);

	return number ? *number % MASQ_SOURCES : MASQ_NO_SOURCE;
}

static __always_inline struct masquerade_source *masq_source(__u32 number)
{
	__u32 at = number % MASQ_SOURCES;

	return bpf_map_lookup_elem(&masq_sources, &at);
}

static __always_inline bool masq_mapping_over(const struct masquerade_mapping *m, __u16 now)
{
	return (__s16)(now - m->until) > 0;
}

static __always_inline bool masq_is_own_port(__be16 port)
{
	return bpf_ntohs(port) - masq_port_first < masq_port_count;
}

#endif
