/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A test run whose frame starts with the cookie in .rodata (8 bytes) and the
 * ingress interface index (4 bytes, host order) where the MAC addresses would be
 * is a trace: the program decides as it always does, changes no state, and
 * writes what it decided here.
 */
#ifndef TOWPATH_ABI_TRACE_H
#define TOWPATH_ABI_TRACE_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/net.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum trace_flags {
	TRACE_VIP = 1 << 0,	   /* matched a service */
	TRACE_FLOW_HIT = 1 << 1,   /* the flow table had it */
	TRACE_MAGLEV = 1 << 2,	   /* the Maglev table chose */
	TRACE_FIB_CACHED = 1 << 3, /* next hop known from this tick */
	TRACE_AFFINITY = 1 << 4,   /* its client was known */
	TRACE_SNAT = 1 << 8,	   /* translated: outer_saddr and source_port say to what */
	TRACE_ROUTE = 1 << 9,	   /* a route of its source chose the table */
	TRACE_ERROR = 1 << 5,	   /* an ICMP error: the flow is the quoted packet's */
	TRACE_FRAGMENT = 1 << 6,   /* a fragment */
};
BTF_KEEP(enum trace_flags);

struct trace {
	__u32 flags;   /* enum trace_flags */
	__u32 verdict; /* enum verdict */
	__u32 service;
	__u32 slot; /* within the service's table */
	__u32 table_base;
	__u32 table_size;
	__u32 handle;
	__u32 hash;
	__s32 fib_result; /* BPF_FIB_LKUP_RET_* or one of our own; the reader sets it to -1 before */
	__u32 mtu;
	struct next_hop hop;
	struct address outer_saddr;
	struct address outer_daddr;
	__be16 source_port;	 /* translated; 0: none yet */
	__be16 destination_port; /* of a translated packet */
	__u32 quic;		 /* enum quic_outcome; the reader sets it to QUIC_NOTHING before */
	__u32 route;		 /* its row, with TRACE_ROUTE */
};

#pragma GCC diagnostic pop

#endif
