/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer: services and backends, what becomes of packets and how often, settings.
 * base.h has the rules.
 */
#ifndef TOWPATH_ABI_LB_H
#define TOWPATH_ABI_LB_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/encap.h"
#include "abi/net.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/*
 * ---- Services -------------------------------------------------------------
 *
 * A packet's destination is looked up in `vips`, an open-addressing hash that
 * user space writes and the program only reads. A slot is published by its last
 * store, `service`; 0 means "no service" and a slot that has ever been used
 * keeps its family, so a probe sequence is never cut by a removal.
 */
struct vip_key {
	struct address addr;
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 family;   /* enum family */
};

/*
 * A service for more than one port or address is found in a second step. The key
 * is then a prefix: VIP_PREFIX is added to its family, its port is the prefix's
 * length, and what its slot holds is not a service but a page of ports. With
 * protocol 0 the key says that the addresses are VIPs at all, for packets that
 * have no ports.
 */
enum vip_kind {
	VIP_PREFIX = 0x40,
	VIP_NODE = 0x80, /* added to protocol: for what begins on this node, by bpf/socket */
};
BTF_KEEP(enum vip_kind);

struct vip_slot {
	struct vip_key key;
	__u32 service; /* index into services, 0 = none */
	__u64 _reserved;
};

enum vip_limits {
	VIP_PROBES = 16, /* slots looked at before giving up */
};
BTF_KEEP(enum vip_limits);

/*
 * Which lengths the prefixes in the index have, so that no others are looked for:
 * a byte each, the longest first, up to 8, then zeros. One word is one store.
 */
struct vip_lengths {
	__u64 ports[2]; /* of prefixes with a page of ports: IPv4, IPv6 */
	__u64 known[2]; /* of all VIPs */
};

enum vip_families {
	VIP_V4 = 0,
	VIP_V6 = 1,
	VIP_LENGTHS = 8,
};
BTF_KEEP(enum vip_families);

/*
 * Ports of a prefix and protocol, by their high byte and then, on a page that the
 * first one names, by their low byte. An entry is 0, or a service and on a first
 * page PORT_WHOLE with it (all 256 ports alike), or on a first page a page. Pages
 * that are in use are never written: new ones take their place with a store to the
 * slot in `vips`.
 */
struct port_page {
	__u32 entry[256];
};

enum port_pages {
	PORT_ENTRIES = 256,
	PORT_WHOLE = 1 << 30,
};
BTF_KEEP(enum port_pages);

enum service_flags {
	SERVICE_NO_FLOW_TABLE = 1 << 0, /* every packet goes by Maglev */
	SERVICE_L2 = 1 << 1,		/* packets keep their IP header, in a new frame */
	SERVICE_SNAT = 1 << 4,		/* translated, not encapsulated */
	SERVICE_LOCAL = 1 << 5,		/* some of its backends may be in `local_backends` */
	SERVICE_ENCAP = 1 << 6,		/* its tunnels are of another kind than IPIP: by `encap` */
	SERVICE_HASH_CLIENT = 1 << 7,	/* new flows go by their source address alone */
	SERVICE_HASH_PORT = 1 << 8,	/* by their destination port alone */
	SERVICE_QUIC = 1 << 9,		/* connection ids may name backends: see abi/quic.h */
	SERVICE_ROUTES_SHIFT = 12,	/* above: the set of sources that have routes, 0 = none */
};
BTF_KEEP(enum service_flags);

/*
 * `table` names a range of `maglev` in one word, so that a new table replaces
 * the old one in one store: base in the low half, number of slots in the high
 * half. 0 slots: the service has no backend. Each of the others is a word of its
 * own too, and takes effect by its store.
 */
struct service {
	__u64 table;
	__u32 flags;	    /* enum service_flags */
	__u32 table_size;   /* slots it is configured to have, backends or not */
	__u32 affinity;	    /* seconds that a client keeps its backend, 0 = none */
	__u32 sources;	    /* the set of source prefixes it is for, 0 = for everyone */
	__u32 flow_timeout; /* seconds after which a flow of UDP has ended, 0 = that of all */
	__u32 encap;	    /* see enum encap_kind; read only with SERVICE_ENCAP */
};

/*
 * A prefix of a set of sources, in the trie that has those of all sets: 64 bits of
 * set and family, then those of the address that count. A set is never changed. Its
 * number is stored in a service when all of its prefixes are there, and they go when
 * no packet can have the number any more.
 *
 * What a prefix of `sources` holds is 1. What one of a set of routes holds is the index of a row of
 * `services` that no VIP leads to, and that has a table: by that new flows of these sources go,
 * unless it is empty.
 */
struct source_key {
	__u32 prefixlen;
	__u32 set;
	__u32 family; /* enum family */
	struct address addr;
};

enum source_limits {
	SOURCE_BITS = 64,   /* before the address */
	SOURCE_V4_BITS = 96 /* more before an IPv4 address, which is the last word */
};
BTF_KEEP(enum source_limits);

/*
 * Maglev slots, each a backend's handle, a cache line to an element: elements of
 * an array are 8 bytes at least, and a slot has 4.
 */
enum maglev_limits {
	MAGLEV_LINE = 16,
};
BTF_KEEP(enum maglev_limits);

struct maglev_line {
	__u32 handle[16];
};

/*
 * ---- Backends -------------------------------------------------------------
 *
 * A handle is what Maglev slots and flow entries hold: the backend's index in
 * the low bits, the generation of that index above. When an index is given up
 * its generation moves on, and every flow entry that still has the old handle
 * is stale at once without being searched for.
 */
enum handle_bits {
	HANDLE_INDEX_BITS = 20,
	HANDLE_GENERATION_BITS = 12,
};
BTF_KEEP(enum handle_bits);

/*
 * Noted for whoever reads the state back. What a state means to packets is done by
 * others: only an active backend is in a table, and one that goes down gets another
 * handle, so that its flows are stale.
 */
enum backend_state {
	BACKEND_ACTIVE = 0,
	BACKEND_DRAINING,    /* no new flows, by somebody's wish */
	BACKEND_QUARANTINED, /* no new flows, since it seems not to be well */
	BACKEND_DOWN,	     /* no flows */
};
BTF_KEEP(enum backend_state);

struct backend {
	struct address addr; /* outer destination */
	__u32 handle;	     /* 0 = index not in use */
	__u32 service;	     /* the service it belongs to */
	__u16 weight;	     /* for whoever reads the state back */
	__be16 port;	  /* new translated flows go to; 0 = the one that the client has sent to */
	__u16 generation; /* the last one that the index had */
	__u8 family;	  /* of addr, enum family */
	__u8 state;	  /* enum backend_state */
};

/*
 * Backends that this node is, or has behind a device of its own, are in `local_backends`: an
 * element holds the handle of the backend that has its index, and 0, or another one's, if that
 * isn't local. Whether packets of a forwarding are delivered here user space decides; it sets
 * SERVICE_LOCAL before the first of a service's backends is there.
 */

/*
 * One CPU's view of a backend: the way to it and the count of what went there,
 * in one cache line that no other CPU writes.
 */
struct backend_cpu {
	__u64 packets;
	__u64 bytes; /* of the IP packets before encapsulation */
	struct next_hop hop;
};

/*
 * Dropped packets are counted by their verdict, from VERDICT_DROP_NO_BACKEND on. All
 * verdicts of that kind are the last ones, so that their number says it. A packet that
 * is answered with what fits counts as one: it did not reach its backend.
 */
enum drop_limits {
	DROP_REASONS = 28,
};
BTF_KEEP(enum drop_limits);

struct service_cpu {
	__u64 packets;
	__u64 bytes;
	__u64 flows; /* packets that no flow entry matched */
	__u64 drops;
	__u64 dropped[28]; /* the same by verdict - VERDICT_DROP_NO_BACKEND */
};

/*
 * Packets of a backend that were dropped, a value for each CPU. Few backends ever have
 * any: an array for all of them and all reasons would be the largest table there is.
 */
struct backend_drop {
	__u32 handle;
	__u32 verdict; /* enum verdict */
};

/*
 * ---- Verdicts -------------------------------------------------------------
 *
 * Every packet adds one to exactly one of these. PASS_* leave the packet as it
 * came, and so does LOCAL, but for the outer header of one that was in a tunnel and is for a VIP.
 * DROP_* say why a packet of a service could not be sent on. TX_* below them are answers to the
 * sender.
 */
enum verdict {
	VERDICT_TX = 0,	  /* encapsulated, out of the same device */
	VERDICT_REDIRECT, /* encapsulated, out of another one */
	VERDICT_HANDOFF,  /* encapsulated, to the kernel, which sends it: see struct punt */
	VERDICT_PASS_NOT_IP,
	VERDICT_PASS_NO_VIP,   /* TCP or UDP to an address and port not ours */
	VERDICT_PASS_PROTOCOL, /* neither TCP nor UDP */
	VERDICT_PASS_FRAGMENT,
	VERDICT_PASS_MALFORMED, /* shorter than its headers say, or nonsense in them */
	VERDICT_PASS_QINQ,	/* behind more tags than one, or another than 802.1Q's */
	VERDICT_LOCAL,		/* to a backend on this node: the stack delivers it */
	VERDICT_PASS_TRACKED,	/* of a flow that the kernel itself translates: see `tracked` */
	VERDICT_DROP_NO_BACKEND,
	VERDICT_DROP_MTU, /* larger than the egress MTU once encapsulated, and nobody is told */
	VERDICT_DROP_NO_ROUTE,	    /* none, or one that ends here */
	VERDICT_DROP_BLACKHOLE,	    /* a blackhole route */
	VERDICT_DROP_UNREACHABLE,   /* an unreachable route */
	VERDICT_DROP_PROHIBITED,    /* a prohibit route */
	VERDICT_DROP_NO_FORWARDING, /* forwarding is off on the ingress device */
	VERDICT_DROP_LWT,	    /* a route that encapsulates, which only the stack can do */
	VERDICT_DROP_NO_ADDRESS,    /* no address to send from on the device that leads there */
	VERDICT_DROP_FIB,	    /* the kernel couldn't look the route up at all */
	VERDICT_DROP_HEADROOM,	    /* the driver has no room for the outer header */
	VERDICT_DROP_SOURCE,	    /* the service isn't for this source */
	VERDICT_DROP_MARTIAN,	    /* from no host's address: nothing could be answered */
	VERDICT_DROP_NOT_ON_LINK,   /* the way to a backend of L2 forwarding has a gateway */
	VERDICT_DROP_NAT_PORTS,	    /* no port left to translate a new flow to */
	VERDICT_DROP_NAT_RATE,	    /* a new flow too many to translate in this jiffy */
	VERDICT_DROP_NAT_MOVING,    /* its flow is just moved: to other tables, or to the kernel */
	VERDICT_DROP_TTL,	    /* no hop left for what is translated, or out of a tunnel */
	VERDICT_DROP_FRAGMENT,	    /* its first one isn't known, or where that went is gone */
	VERDICT_DROP_MTU_QUIET,	    /* like DROP_MTU, and too many have been told this jiffy */
	VERDICT_DROP_NO_FLOW,	    /* a RST for no flow that is translated */
	VERDICT_DROP_UNWRAP_MALFORMED, /* a tunnel's for this node, with nonsense in its headers */
	VERDICT_DROP_UNWRAP_ECN, /* RFC 6040: outer CE, and the packet within isn't ECN-capable */
	VERDICT_TX_TOO_BIG,	 /* like DROP_MTU, and the sender is told what fits */
	VERDICT_TX_ECHO,	 /* an echo request to a VIP, answered */
	VERDICT_MAX,
};
BTF_KEEP(enum verdict);

struct verdict_cpu {
	__u64 packets[64]; /* by enum verdict; a power of two */
};

/*
 * ---- Unwrapping -----------------------------------------------------------
 *
 * A packet in a tunnel to one of `unwrap_addresses`, a per-CPU hash from decap_key to
 * decap_counters, is taken out of it if it is for a VIP, and counted there. Its verdict is that of
 * the packet that was within.
 */

/*
 * ---- Settings -------------------------------------------------------------
 *
 * One record. The program reads all but the seeds and the cookie, which are for the next program
 * that is loaded over the same tables, which must agree with this one.
 */
struct settings {
	__u64 hash_seed;
	__u64 flow_seed;
	__u64 cookie;
	struct address source4; /* outer source, or the prefix to vary */
	struct address source6;
	__be32 vary4;	   /* host bits that the flow's hash fills, 0 = none */
	__be32 vary6;	   /* the same, of the last word */
	__u32 fib_source4; /* 1: take the FIB's preferred source */
	__u32 fib_source6;
	__u32 echo;	  /* 1: echo requests to VIPs are answered */
	__u16 too_big_df; /* 1: of too large IPv4 packets only those with DF are answered */
	__u8 moving;	  /* 1: tables are being moved, and what comes meanwhile isn't here yet */
	__u8 tracking;	  /* enum tracking */
};

/*
 * ---- Tracked flows --------------------------------------------------------
 *
 * Flows to translated services that the kernel translates by its own connection tracking, as
 * somebody else's rules had it before these services were balanced here, or will have it when they
 * aren't any more. In the hash `tracked` are their keys, as packets have them, and of UDP until when
 * (CLOCK_MONOTONIC, in ns) they last if no packet comes; asked for are those whose packets are of no
 * flow that is known here. User space enters them as the kernel lists them and takes them out when it
 * lists them no longer, or ends them. What comes back of those that have an address of ours is there
 * as well: no flow that begins here has their ports towards the same backend.
 */
enum tracking {
	TRACKING_NONE = 0, /* there are none */
	TRACKING_KNOWN,	   /* those in `tracked` pass */
	TRACKING_TAKE,	   /* all that don't begin by a SYN pass, and are entered */
	TRACKING_GIVE, /* all that aren't known here pass, and those in `tracked` before others */
};
BTF_KEEP(enum tracking);

/* In the place of a time, of flows that are given to the kernel; and what a time says besides. */
enum tracked_value {
	TRACKED_HELD = 1, /* neither side has it: its packets are dropped, and come again */
	/* A bit of a time, of UDP: a program has seen a packet of it, so its time is told here. */
	TRACKED_SEEN = 1,
};
BTF_KEEP(enum tracked_value);

/*
 * ---- Ways -----------------------------------------------------------------
 *
 * Where a next hop that is kept for a backend or a client would be wrong for some of its
 * flows, the kernel is asked for every packet. Each word is a mask, 0 or all bits: what a
 * question has of a flow is masked with it, and so is what it is kept for. One record; user
 * space stores each word by itself as routes and rules change.
 */
struct way_masks {
	__u32 tunnel;  /* for packets in tunnels */
	__u32 backend; /* translated ones to backends */
	__u32 client;  /* and to clients */
	__u32 _reserved;
};

struct ways {
	struct way_masks v4, v6;
};

/*
 * ---- Punt -----------------------------------------------------------------
 *
 * Put before a packet that goes to the kernel because its next hop is not yet
 * resolved, or XDP can't send out of the device. The tc program on the same device
 * reads it and sends the packet by way of the neighbour, which the kernel resolves:
 * that of the packet's destination, or the one named here. A frame that is complete
 * it sends as it is. What is for a backend on this node another program translates: it is
 * told all that it needs, so that it works over whichever tables there are. As large as metadata can be on older kernels.
 */
struct punt {
	__u64 cookie; /* the one in .rodata: not from a driver */
	__u32 ifindex;
	__u32 family; /* of next_hop; 0 = where the packet is addressed to; or PUNT_FRAME */
	struct address next_hop;
};

enum punt_families {
	PUNT_LOCAL = 254, /* not to be sent: for a backend on this node, see below */
	PUNT_FRAME = 255, /* to whom the frame is addressed: it leaves as it is */
};
BTF_KEEP(enum punt_families);

/* The same as it is for PUNT_LOCAL. */
struct punt_local {
	__u64 cookie;
	__be16 port;   /* the backend's */
	__u16 timeout; /* as in struct packet_flow */
	__u32 family;  /* PUNT_LOCAL */
	struct address backend;
};

#pragma GCC diagnostic pop

#endif
