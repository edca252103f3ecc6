/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The translations of services that are forwarded by SNAT: one table for both
 * directions, set-associative like the flow table. A set is found from what both
 * directions know, the translated source address and port and the protocol: the
 * backend's packets carry these, and for a client's flow they follow from its hash,
 * which names up to NAT_TRIES candidates. `reach` of a flow's first set says how
 * many of them any such flow ever needed.
 *
 * `ref` is an entry's publishing word: the low half of the reply's keyed hash, and
 * above it a version that every rewriting raises. It is cleared before the rest is
 * rewritten and stored after it; whoever reads an entry compares it before and after.
 *
 * Each direction marks what it has seen in a byte of its own, so that neither undoes
 * the other's. Nothing is ever searched for old entries: one that is older than its
 * state allows is there until another flow wants its way or its port, or its own client
 * begins another flow: by a SYN, or by any datagram.
 */
#ifndef TOWPATH_ABI_SNAT_H
#define TOWPATH_ABI_SNAT_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/net.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

struct nat_life {
	__u16 seen;   /* low bits of jiffies >> NAT_SEEN_SHIFT */
	__u8 client;  /* enum nat_marks */
	__u8 backend; /* enum nat_marks */
};

struct nat_head {
	__u64 forward; /* a byte of tag for each way, by the client's flow */
	__u64 reply;   /* the same, by the backend's */
	struct nat_life life[8];
	__u8 reach; /* further candidates to look at */
	__u8 _reserved[15];
};

struct nat_flow {
	__u64 ref; /* 0 = free */
	struct address client;
	struct address vip;
	__be16 client_port;
	__be16 vip_port;
	__be16 port; /* translated source port */
	__u8 protocol;
	__u8 source; /* translated source address, by its number */
	__u32 handle;
	__u32 version;
	__be16 backend_port;
	__u16 timeout; /* of UDP with packets both ways, in units of nat_life.seen; 0 = that of all */
	__u16 _reserved[2];
};

enum nat_marks {
	NAT_ANSWERED = 1 << 0, /* a packet came; from the client: after the backend's */
	NAT_FIN = 1 << 1,
	NAT_RST = 1 << 2,
};
BTF_KEEP(enum nat_marks);

enum nat_limits {
	NAT_WAYS = 8,
	NAT_SEEN_SHIFT = 8,
	NAT_TRIES = 16,	   /* candidates for a flow */
	NAT_SOURCES = 16,  /* addresses of a family; IPv6 is numbered from here */
	NAT_CLIENTS = 256, /* whose next hops a CPU keeps */
};
BTF_KEEP(enum nat_limits);

/*
 * A translation of another table that is to be in this one too (snat/copy.bpf.c). Of
 * `flow.ref` the low half is the reply's hash and the high half 0; the answer has the
 * entry's, and its way. An entry that has been entered is asked for by both.
 */
struct nat_copy {
	struct nat_flow flow;
	struct nat_life life;
	__u32 set;
	__u32 home;   /* the first set that the flow is looked for in */
	__u32 result; /* enum nat_copied */
	__u8 tries;   /* candidates from `home` to `set` */
	__u8 forward_tag;
	__u8 reply_tag;
	__u8 way; /* that it was given */
	__u32 _reserved;
};

enum nat_copied {
	NAT_COPY_LEFT = 0, /* nothing was changed */
	NAT_COPY_MADE,
	NAT_COPY_KNOWN, /* it was there already */
	NAT_COPY_GONE,	/* it was given up */
};
BTF_KEEP(enum nat_copied);

enum nat_copy_limits {
	NAT_COPIES = 32, /* at once: what a packet of a test run has room for */
};
BTF_KEEP(enum nat_copy_limits);

/* What came back from backends for a service, counted by each CPU for itself. */
struct reply_cpu {
	__u64 packets;
	__u64 bytes;
};

/* The way to a client as one CPU knows it. `hop.saddr` is the client's address. */
struct nat_client_hop {
	struct next_hop hop;
	__u32 family;
	__u32 _reserved[3];
};

/* With which addresses and ports the table was filled, as a fingerprint. */
struct nat_state {
	__u64 config;
};

#pragma GCC diagnostic pop

#endif
