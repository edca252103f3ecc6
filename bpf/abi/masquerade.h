/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Masquerade: dynamic source NAT of what pods send out of the node, and the way back.
 *
 * Flows are in a set-associative table whose tags and life are those of abi/snat.h. A set is
 * found from what both directions know: the remote's address and port, the protocol, and the
 * translated port. The translated address is not among it, so that a flow is found, and keeps its
 * address, whatever source the routes prefer by now; it is in the hash in `ref`.
 *
 * One port so serves as many flows as there are remotes, in as many sets. The same says which way
 * of its set is a flow's own. An entry that is there is found by both directions without a look at
 * the head, so that a packet touches one line of memory here. The others' ways are in the head.
 */
#ifndef TOWPATH_ABI_MASQUERADE_H
#define TOWPATH_ABI_MASQUERADE_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/snat.h"
#include "abi/xlat.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum masquerade_limits {
	MASQ_SOURCES = 256,	/* translated addresses; IPv6 has the upper half of the numbers */
	MASQ_NO_SOURCE = 256,	/* no such number */
	MASQ_DECISIONS = 1024,	/* kept by each CPU */
	MASQ_KNOWN_PODS = 1024, /* the same of pods */
	MASQ_NO_RULE = 0xffff,	/* for a pod: it is none */
	MASQ_PORT_WORDS = 1024,
};
BTF_KEEP(enum masquerade_limits);

/* As struct nat_head, whose life is in the flow here. */
struct masquerade_head {
	__u64 forward;
	__u64 reply;
	__u8 reach; /* further candidates to look at */
	__u8 _reserved[15];
};

/* As struct nat_flow: `ref` is written last, and is cleared first. A line of the CPU's cache. */
struct masquerade_flow {
	__u64 ref; /* 0 = free */
	struct address client;
	struct address remote;
	__be16 client_port; /* of ICMP: the identifier, and the remote's is 0 */
	__be16 remote_port;
	__be16 port; /* translated */
	__u8 protocol;
	__u8 source;   /* translated address, by its number */
	__u32 ifindex; /* of the device by which it leaves */
	__u32 version;
	__u16 generation; /* of the source, when the flow was bound */
	__u16 _reserved;
	struct nat_life life;
};

/* An address that packets are translated to. One that has gone has another generation. */
struct masquerade_source {
	struct address address;
	__u32 family; /* enum family, 0 = none */
	__u16 generation;
	__u16 _reserved;
};

struct masquerade_address {
	struct address address;
	__u32 family;
};

/* Which pods' addresses are translated, and which destinations are not. Longest-prefix keys. */
struct masquerade_prefix4 {
	__u32 bits; /* 32 for `of`, and those of the prefix */
	__u32 of;   /* the device's index; of a destination: the rule's number */
	__be32 address;
};

struct masquerade_prefix6 {
	__u32 bits;
	__u32 of;
	struct address address;
};

enum masquerade_device_flags {
	MASQ_DEVICE_ETHERNET = 1 << 0, /* packets may be put into frames for it */
	MASQ_DEVICE_PEER = 1 << 1, /* its peer is in another namespace: packets may be put there */
};
BTF_KEEP(enum masquerade_device_flags);

/* A device that is followed. What leaves by another one is dropped: it could go untranslated. */
struct masquerade_device {
	__u32 flags;
	__u32 mtu;
	__u16 source4; /* number of its own address: for kernels whose FIB names none */
	__u16 source6;
};

/* The rule for what a pod sends by a device, as one CPU knows it until the next jiffy. */
struct masquerade_pod {
	struct address address;
	__u32 tick; /* low jiffies, 0 = none */
	__u32 ifindex;
	__u32 rule; /* its number, or MASQ_NO_RULE */
	__u32 family;
};

/*
 * A way, as one CPU knows it until the next jiffy. `flow` is as much of the packets' as tells ways
 * apart, with what struct masq_work says. What every packet needs comes first.
 */
struct masquerade_decision {
	struct flow_key flow;
	__u32 tick; /* low jiffies, 0 = none */
	__u32 rx_ifindex;
	__u32 tx_ifindex;
	__u32 verdict; /* enum masquerade_verdict; MASQ_SENT, _NEIGHBOUR, _PEER, _STACK: this way */
	__u32 mtu;     /* 0 = not known */
	__u16 source;
	__u16 generation;
	__u8 dmac[6];
	__u8 smac[6];
	__u32 next_family; /* of `next`, the next hop */
	struct address next;
	__u32 _reserved[8];
};

/* A flow that came in from outside, by the packets that pods answer with. */
struct masquerade_inbound {
	__u32 seen; /* in units of nat_life.seen: as many low bits count as 32 of jiffies have */
};

/* Endpoint-independent mapping: to whom a port belongs. */
struct masquerade_endpoint {
	struct address address;
	__u32 source; /* number */
	__be16 port;  /* translated */
	__u8 protocol;
	__u8 family;
};

struct masquerade_mapping {
	struct address client;
	__be16 client_port;
	__u16 seen;  /* in units of nat_life.seen */
	__u16 until; /* the same */
	__u16 _reserved;
};

/*
 * Families whose flows between two addresses all go one way, and those whose flows to one address
 * do, whoever sends them: no rule or route tells them apart.
 */
enum masquerade_alike {
	MASQ_ALIKE4 = 1 << 0,
	MASQ_ALIKE6 = 1 << 1,
	MASQ_ALIKE_SOURCES4 = 1 << 2,
	MASQ_ALIKE_SOURCES6 = 1 << 3,
};
BTF_KEEP(enum masquerade_alike);

/* What has to be the same for as long as the table is. */
struct masquerade_state {
	__u64 seed;
	__u64 config;	   /* fingerprint of rules, for those who look */
	__u32 adopt_until; /* low seconds of CLOCK_MONOTONIC: unknown connections are the stack's */
	__u32 alike;	   /* enum masquerade_alike */
};

/* One record: while masquerade begins on a node, what flows there are already isn't known yet. */
struct masquerade_learning {
	__u64 until; /* CLOCK_MONOTONIC, in ns: unknown flows are the stack's, but for SYNs */
};

/* Ports that sockets of this node's have bound, by protocol: 0 TCP, 1 UDP. */
struct masquerade_ports {
	__u64 taken[MASQ_PORT_WORDS];
};

enum masquerade_program {
	MASQ_FROM_POD = 0, /* ingress of pods' devices */
	MASQ_TO_POD,	   /* egress of them */
	MASQ_FROM_NET,	   /* ingress of all others */
	MASQ_TO_NET,	   /* egress of them */
	MASQ_PROGRAMS,
};
BTF_KEEP(enum masquerade_program);

enum masquerade_verdict {
	MASQ_SENT = 0,	 /* translated, put into a frame and sent */
	MASQ_NEIGHBOUR,	 /* translated, and sent by the kernel, which resolves the next hop */
	MASQ_PEER,	 /* translated, and put into the pod's namespace */
	MASQ_STACK,	 /* translated, and left to the stack */
	MASQ_PASS_OTHER, /* not from a pod, not for one, not IP */
	MASQ_PASS_STACK, /* through_stack: translated when it leaves */
	MASQ_PASS_LOCAL, /* for this node, or no unicast address */
	MASQ_PASS_EXCLUDED,
	MASQ_PASS_NO_ROUTE, /* the stack says so to the pod */
	MASQ_PASS_WAY,	    /* the way out is no frame's: translated when it leaves */
	MASQ_PASS_TTL,	    /* the stack says so to the pod */
	MASQ_PASS_MTU,	    /* too long for the way: the stack says so, or divides it */
	MASQ_PASS_INBOUND,  /* an answer to what came in from outside */
	MASQ_PASS_SOCKET,   /* for a socket of this node's */
	MASQ_PASS_UNSOLICITED,
	MASQ_PASS_DONE, /* translated already */
	MASQ_DROP_MALFORMED,
	MASQ_DROP_PROTOCOL, /* has no ports to be told apart by */
	MASQ_DROP_FRAGMENT, /* its first fragment isn't known */
	MASQ_DROP_SOURCE,   /* the routes' source isn't known, or there is none */
	MASQ_DROP_DEVICE,   /* the device isn't followed yet */
	MASQ_DROP_PORTS,    /* none is free for that remote */
	MASQ_DROP_FULL,	    /* no room for the flow */
	MASQ_DROP_NO_FLOW,  /* ends, or tells of, a flow that isn't known */
	MASQ_DROP_UNSOLICITED,
	MASQ_DROP_TTL,
	MASQ_DROP_WRITE, /* the kernel would not have it changed */
	MASQ_DROP_RATE,	 /* too many new flows in this jiffy */
	MASQ_MAX,
	MASQ_HAIRPIN, /* of a decision: to a pod, by what it is translated to; ends as what comes */
};
BTF_KEEP(enum masquerade_verdict);

/* One CPU's, for each program: every packet is in exactly one verdict. */
struct masquerade_counts {
	__u64 packets[32]; /* by enum masquerade_verdict */
	__u64 bytes;	   /* of translated packets */
	__u64 bound;	   /* new flows */
};

#pragma GCC diagnostic pop

#endif
