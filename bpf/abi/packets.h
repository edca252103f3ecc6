/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services in packets of this node's pods: those that carry a service's address, since the pod's
 * connect() never ran on this node's hooks. Destination NAT where they come in, and the way back.
 *
 * Flows are in a set-associative table whose tags and life are those of abi/snat.h. A set is found
 * from what both directions know: the pod's address, its device, the protocol, and the port that
 * the backend sees. That is the pod's own, unless another flow of the pod has it towards the same
 * backend, or there is no room in its set; a flow then gets another one, of a few that follow from
 * its hash.
 */
#ifndef TOWPATH_ABI_PACKETS_H
#define TOWPATH_ABI_PACKETS_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/snat.h"
#include "abi/xlat.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum packet_limits {
	PACKET_WAYS = 8,
	PACKET_TRIES = 16, /* ports that a flow may get, its own one the first */
	/* The others: below what systems choose ports from by themselves. */
	PACKET_PORT_FIRST = 1024,
	PACKET_PORT_COUNT = 14976,
	PACKET_STRIDE = 937, /* from one to the next */
	PACKET_IDLE = 300,   /* seconds until datagrams to a service begin another flow */
};
BTF_KEEP(enum packet_limits);

/* As struct nat_head, whose life is in the flow here. */
struct packet_head {
	__u64 forward;
	__u64 reply;
	__u8 reach; /* further candidates to look at */
	__u8 _reserved[15];
};

/* As struct nat_flow: `ref` is written last, and is cleared first. */
struct packet_flow {
	__u64 ref; /* 0 = free */
	__u64 to;  /* handle of the backend; above it, the epoch of its tables */
	struct address client;
	struct address vip;
	struct address backend;
	__be16 client_port;
	__be16 vip_port;
	__be16 port; /* that the backend sees */
	__be16 backend_port;
	__u32 ifindex; /* of the pod's device */
	__u32 version;
	__u8 protocol;
	__u8 family;
	__u16 timeout; /* of UDP with packets both ways, in units of nat_life.seen; 0 = that of all */
	struct nat_life life;
	__u64 _reserved;
};

/* One record. */
struct packet_state {
	__u64 seed;	/* the same for as long as the table is */
	__u32 hairpins; /* 1: there has been a flow from a pod to itself */
	__u32 giving; /* 1: flows are given to the kernel: those in `tracked` pass, and unknown ones */
};

enum packet_program {
	PACKET_FROM_POD = 0, /* ingress of pods' devices */
	PACKET_TO_POD,	     /* egress of them */
	PACKET_PROGRAMS,
};
BTF_KEEP(enum packet_program);

/* PASS_* leave the packet as it came. */
enum packet_verdict {
	PACKET_BALANCED = 0, /* it has a backend's address, and is left to the stack */
	PACKET_HAIRPIN,	     /* the backend is the pod itself: sent back to it, as the service's */
	PACKET_RESTORED,     /* an answer: it has the service's address */
	PACKET_PASS_NO_SERVICE,
	PACKET_PASS_NO_FLOW,  /* no answer of a flow that is known, or an error about none */
	PACKET_PASS_OTHER,    /* neither TCP nor UDP, nor an ICMP error; or malformed */
	PACKET_PASS_FRAGMENT, /* its first one isn't known, and it is not to a VIP */
	PACKET_PASS_FAMILY,   /* the backend is of the other family */
	PACKET_PASS_TRACKED, /* of a flow that the kernel itself translates: see `tracked` in lb.h */
	PACKET_DROP_NO_BACKEND,
	PACKET_DROP_SOURCE,   /* the service isn't for this source */
	PACKET_DROP_NO_FLOW,  /* a RST for no flow that is known */
	PACKET_DROP_FRAGMENT, /* to a VIP, and its first one isn't known */
	PACKET_DROP_FULL,     /* no room for the flow */
	PACKET_DROP_RATE,     /* too many new flows in this jiffy */
	PACKET_DROP_WRITE,    /* the kernel would not have it changed */
	PACKET_DROP_DEVICE,   /* its answers would leave where they can't be given the VIP, yet */
	PACKET_DROP_MOVING,   /* its flow is just being given to the kernel */
	PACKET_MAX,
};
BTF_KEEP(enum packet_verdict);

/* One CPU's, for each program: every packet is in exactly one verdict. */
struct packet_counts {
	__u64 packets[32]; /* by enum packet_verdict */
	__u64 bytes;	   /* of translated packets */
	__u64 begun;	   /* new flows */
};

#pragma GCC diagnostic pop

#endif
