/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of source NAT, and what a packet's translation is worked out in. */
#ifndef TOWPATH_SNAT_MAPS_H
#define TOWPATH_SNAT_MAPS_H

#include "abi/snat.h"
#include "lb/maps.h"
#include "snat/rewrite.h"
#include "snat/sets.h"

ARRAY_MAP(nat_states, struct nat_state);
ARRAY_MAP(reply_cpus, struct reply_cpu);	   /* cpu * services + service */
ARRAY_MAP(nat_client_hops, struct nat_client_hop); /* cpu * NAT_CLIENTS + client */

/* Set before loading. No ports: no service is translated, and the verifier leaves all of it out. */
const volatile struct address nat_addresses[2 * NAT_SOURCES] = {};
const volatile __u64 nat_known = 0; /* a bit for each last byte of them, modulo 64 */
const volatile __u32 nat_sources4 = 0;
const volatile __u32 nat_sources6 = 0;
const volatile __u32 nat_port_first = 0;
const volatile __u32 nat_ports = 0;
const volatile __u32 nat_mask = 0; /* sets - 1 */

const volatile __u32 nat_learn = FLOW_LEARN; /* new flows in a jiffy and CPU */

/* Where in the table a flow is looked for, or is to be put. */
struct nat_search {
	__u64 keyed; /* the client's flow, keyed */
	__u64 key;   /* of the candidate: translated address, port, protocol */
	__u64 ref;   /* of the entry found */
	__u32 first; /* candidate, and how far it is from each to the next */
	__u32 stride;
	__u32 number; /* of the candidate */
	__u32 source; /* its address, by its number, and port */
	__be32 saddr; /* the last word of that address */
	__be16 port;
	__u16 now;   /* in units of nat_life.seen */
	__u32 home;  /* the first one's set */
	__u32 depth; /* `reach` of that */
	__u32 set;
	__u32 way;   /* NAT_WAYS: not found */
	__u32 tries; /* candidates gone past */
	__u32 full;  /* of them, whose set was full */
	__u32 reply; /* hash for `ref` */
	__u32 rank;  /* of a way, and the best so far */
	__u32 best;
	__u8 forward_tag;
	__u8 reply_tag;
	__u8 _reserved[6];
};

/* A packet's translation. */
struct nat {
	struct nat_tuple tuple;
	__u32 handle; /* of the flow's backend */
	struct nat_search search;
	struct nat_quote quote;
	struct next_hop hop;
	__u32 way;	     /* enum way_out, or the verdict where there is no next hop */
	__u32 fresh;	     /* the flow is a new one */
	__u32 service;	     /* that an ICMP error is counted for */
	__be16 backend_port; /* of the flow, whatever its backend's is by now */
	__u16 timeout;	     /* of its service's flows, as struct nat_flow has it */
	__u8 flags;	     /* TCP */
	__u8 _reserved[3];
};

/* One for each of `contexts`: global functions find it by the same slot. */
ARRAY_MAP(nats, struct nat);

static __always_inline struct nat *nat_of(__u32 slot)
{
	return bpf_map_lookup_elem(&nats, &slot);
}

/* Whether an address may be one that packets are translated to: most others are told apart. */
static __always_inline bool nat_may_be_source(const struct address *address)
{
	return nat_known >> (bpf_ntohl(address->word[3]) & 63) & 1;
}

/* The same for a destination with its port. */
static __always_inline bool nat_may_be(const struct flow_key *flow)
{
	if (!nat_ports || bpf_ntohs(flow->dport) - nat_port_first >= nat_ports)
		return false;
	return nat_may_be_source(&flow->daddr);
}

#endif
