/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of services in packets, and what a packet is worked out in. */
#ifndef TOWPATH_SOCKET_PACKET_MAPS_H
#define TOWPATH_SOCKET_PACKET_MAPS_H

#include "abi/packets.h"
#include "lb/array_map.h"
#include "lb/maps.h"
#include "xlat/packet.h"

struct packet_set {
	struct packet_flow way[PACKET_WAYS];
};

struct packet_lock {
	struct bpf_spin_lock lock;
};

ARRAY_MAP(packet_heads, struct packet_head);
ARRAY_MAP(packet_flows, struct packet_set);
ARRAY_MAP(packet_states, struct packet_state);

/* Apart from the sets: the kernel maps no array with locks in it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet_lock);
} packet_locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PACKET_PROGRAMS);
	__type(key, __u32);
	__type(value, struct packet_counts);
} packet_counts SEC(".maps");

/* Set before loading. */
const volatile __u64 packet_seed = 0;  /* that of the table */
const volatile __u32 packet_mask = 0;  /* sets - 1 */
const volatile __u32 packet_rate = 0;  /* new flows in a jiffy and CPU */
const volatile __u32 packet_epoch = 0; /* of the tables that handles are of */

/* A flow by what its backend sees: both directions can tell. */
struct packet_ends {
	struct address client;
	struct address backend;
	__be16 port; /* of the client, as the backend sees it */
	__be16 backend_port;
};

/* Where in the table a flow is looked for, or is to be put. */
struct packet_search {
	__u64 keyed; /* the client's flow, keyed */
	__u64 base;  /* of all candidates: the client, its device and the protocol */
	__u64 ref;   /* of the entry found */
	__u32 home;  /* set of the first candidate */
	__u32 depth; /* `reach` of that */
	__u32 set;
	__u32 way;
	__u32 reply; /* hash for `ref` */
	__u32 rank;  /* of a way, and the best so far */
	__u32 best;
	__be16 port; /* of the candidate */
	__u8 forward_tag;
	__u8 reply_tag;
};

/* A packet on its way. */
struct packet_work {
	struct xlat_packet p;
	struct packet_search search;
	struct packet_ends ends;
	struct packet_flow found; /* what the packet's flow is translated by */
	__u32 ifindex;		  /* of the pod's device */
	__u32 service;		  /* index */
	__u32 handle;		  /* of the backend for a new flow */
	__u32 begun_at;		  /* low jiffies, in which ... */
	__u32 begun;		  /* ... so many flows have begun here */
	__u16 timeout;		  /* of the service's flows */
	__u16 _reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet_work);
} packet_works SEC(".maps");

static __always_inline struct packet_work *packet_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packet_works, &zero);
}

static __always_inline struct xlat_packet *xlat_packet(void)
{
	struct packet_work *w = packet_work();

	return w ? &w->p : NULL;
}

static __always_inline __u64 xlat_seed(void)
{
	return packet_seed;
}

static __always_inline struct packet_state *packet_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packet_states, &zero);
}

static __always_inline struct packet_counts *packet_count(const __u32 program)
{
	__u32 at = program;

	return bpf_map_lookup_elem(&packet_counts, &at);
}

#endif
