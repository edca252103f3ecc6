/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses between BPF and user space.
 *
 * Every struct and enum that both sides read is here and nowhere else. User
 * space does not include this file: it reads the same definitions from the BTF
 * of the compiled object and makes numpy dtypes of them. Three rules keep that
 * possible:
 *
 *  - no implicit padding and no bit-fields (-Wpadded is an error here);
 *  - enums, not #defines, for every number that has a name;
 *  - __be16 and __be32 where bytes are in network order, since these typedef
 *    names are what turns them into big-endian dtypes.
 *
 * Addresses are 16 bytes. An IPv6 address fills them; an IPv4 address is the
 * last word, the first three being zero, and a family beside it says which.
 */
#ifndef TOWPATH_ABI_H
#define TOWPATH_ABI_H

#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* Same numbers as AF_INET and AF_INET6. 0 is an index entry never used. */
enum family {
	FAMILY_NONE = 0,
	FAMILY_V4 = 2,
	FAMILY_V6 = 10,
};

struct address {
	__be32 word[4];
};

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
};

struct vip_slot {
	struct vip_key key;
	__u32 service; /* index into services, 0 = none */
	__u64 _reserved;
};

enum vip_limits {
	VIP_PROBES = 16, /* slots looked at before giving up */
};

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

enum service_flags {
	SERVICE_NO_FLOW_TABLE = 1 << 0, /* every packet goes by Maglev */
	SERVICE_L2 = 1 << 1,		/* packets keep their IP header, in a new frame */
	SERVICE_SNAT = 1 << 4,		/* translated, not encapsulated */
};

/*
 * `table` names a range of `maglev` in one word, so that a new table replaces
 * the old one in one store: base in the low half, number of slots in the high
 * half. 0 slots: the service has no backend. Each of the others is a word of its
 * own too, and takes effect by its store.
 */
struct service {
	__u64 table;
	__u32 flags;	  /* enum service_flags */
	__u32 table_size; /* slots it is configured to have, backends or not */
	__u32 affinity;	  /* seconds that a client keeps its backend, 0 = none */
	__u32 sources;	  /* the set of source prefixes it is for, 0 = for everyone */
	__u64 _reserved;
};

/*
 * A prefix of a set of sources, in the trie that has those of all sets: 64 bits of
 * set and family, then those of the address that count. A set is never changed. Its
 * number is stored in a service when all of its prefixes are there, and they go when
 * no packet can have the number any more.
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

/*
 * Maglev slots, each a backend's handle, a cache line to an element: elements of
 * an array are 8 bytes at least, and a slot has 4.
 */
enum maglev_limits {
	MAGLEV_LINE = 16,
};

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
 * One CPU's view of a backend: the way to it and the count of what went there,
 * in one cache line that no other CPU writes.
 */
struct next_hop {
	struct address saddr; /* outer source, before flow variation */
	__u32 tick;	      /* low jiffies of the FIB look-up, 0 = none */
	__u32 rx_ifindex;     /* for packets that came in here (and see HOP_L2) ... */
	__u32 tx_ifindex;     /* ... send out of there */
	__be16 rx_vlan;	      /* tag control word, 0 = untagged */
	__be16 tx_vlan;
	__u16 mtu; /* 0 = not known */
	__u8 dmac[6];
	__u8 smac[6];
	__u8 _reserved[2];
};

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
	DROP_REASONS = 20,
};

struct service_cpu {
	__u64 packets;
	__u64 bytes;
	__u64 flows; /* packets that no flow entry matched */
	__u64 drops;
	__u64 dropped[20]; /* the same by verdict - VERDICT_DROP_NO_BACKEND */
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
 * ---- Flows ----------------------------------------------------------------
 *
 * The 5-tuple as it is parsed. The flow hash is taken over it.
 */
struct flow_key {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 family;
	__u16 _reserved;
};

/*
 * The flow table is set-associative: FLOW_WAYS entries and, in an array of its own
 * that stays in the CPU's cache, a word with a byte of tag for each of them (0 is
 * a free way). A flow that isn't known is known not to be by that word alone.
 *
 * An entry needs no destination: the service stands for address, port and
 * protocol. `ref` is its publishing word: the other bits of the flow's keyed hash in the
 * low half, the handle in the high half. It is cleared before the rest is
 * rewritten and stored after it. Two CPUs that write one entry at once can leave
 * a key that neither meant; the hash in `ref` does not match such a key, so the
 * entry is never found and ages out.
 */
struct flow {
	__u64 ref;
	struct address saddr;
	__u32 service; /* and enum flow_flags */
	__be16 sport;
	__u16 seen; /* low bits of jiffies >> FLOW_SEEN_SHIFT */
};

/*
 * What the client has sent, above any index of a service. ENDING: FIN or RST, and no SYN
 * since. What the other side sends isn't seen; as long as it does, the client's
 * acknowledgements keep the entry young. OPENING: nothing but SYNs. Neither: the flow is
 * established, or not TCP's.
 */
enum flow_flags {
	FLOW_ENDING = 1 << 30,
	FLOW_OPENING = 1U << 31,
	FLOW_STATE = FLOW_ENDING | FLOW_OPENING,
};

/*
 * A CPU learns so many flows in a jiffy and no more. In a flood the rest go by
 * Maglev, and the table keeps the flows that it has.
 */
struct flow_cpu {
	__u32 tick;
	__u32 learnt;
	__u32 answer_tick;
	__u32 answered; /* packets that were too large, see FLOW_ANSWERS */
	__u64 _reserved[6];
};

enum flow_limits {
	FLOW_WAYS = 8,
	FLOW_SEEN_SHIFT = 6,
	FLOW_LEARN = 512, /* in a jiffy, which has 1 to 10 ms */
	FLOW_ANSWERS = 8, /* to packets that are too large, in a jiffy */
};

/*
 * ---- Fragments ------------------------------------------------------------
 *
 * Only the first fragment of a packet has ports. It leaves them here, and the
 * backend that it went to, for those that follow: they are the packet's if source,
 * destination, identification and, for IPv4, protocol are the same (RFC 791;
 * RFC 8200, 4.5). Handle 0: it went to the kernel, and so do they. Of a backend's answer that
 * is translated the handle is the backend's that sent it.
 *
 * The table is set-associative. All packets of one pair of addresses share
 * FRAGMENT_SPREAD sets out of all those there are, which ones only this machine
 * knows: a sender who has more fragments on the way than fit there displaces his
 * own, and nobody else's.
 *
 * `ref` publishes an entry, as a flow's does: bits of the keyed hash in the low half,
 * never 0, and the handle in the high half.
 */
struct fragment {
	__u64 ref;
	struct address saddr;
	struct address daddr;
	__be32 id; /* IPv4: the low half, as it lies in the header */
	__be16 sport;
	__be16 dport;
	__u32 seen;    /* when, in 2^20 ns */
	__u8 protocol; /* of the first fragment's transport header */
	__u8 family;   /* enum family */
	__u16 _reserved;
	__u64 _reserved2;
};

enum fragment_limits {
	FRAGMENT_WAYS = 8,
	FRAGMENT_SPREAD = 16,
	FRAGMENT_LIFE = 4000, /* in 2^20 ns, so 4.2 s */
};

/*
 * ---- Clients --------------------------------------------------------------
 *
 * Which backend a client was given by a service with affinity. Set-associative and
 * published by `ref` as the flow table is.
 */
struct client {
	__u64 ref;
	struct address addr;
	__u32 service;
	__u32 seen; /* seconds since boot: when a flow of the client last began */
};

enum client_limits {
	CLIENT_WAYS = 8,
};

/*
 * ---- Source NAT -----------------------------------------------------------
 *
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
 * state allows is there until another flow wants its way or its port.
 */
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
	__u16 _reserved[3];
};

enum nat_marks {
	NAT_ANSWERED = 1 << 0, /* a packet came; from the client: after the backend's */
	NAT_FIN = 1 << 1,
	NAT_RST = 1 << 2,
};

enum nat_limits {
	NAT_WAYS = 8,
	NAT_SEEN_SHIFT = 8,
	NAT_TRIES = 16,	   /* candidates for a flow */
	NAT_SOURCES = 16,  /* addresses of a family; IPv6 is numbered from here */
	NAT_CLIENTS = 256, /* whose next hops a CPU keeps */
};

/* What came back from backends for a service, one row for each CPU. */
struct reply_cpu {
	__u64 packets;
	__u64 bytes;
};

/* The way to a client as one CPU knows it. `hop.saddr` is the client's address. */
struct nat_way {
	struct next_hop hop;
	__u32 family;
	__u32 _reserved[3];
};

/* With which addresses and ports the table was filled, as a fingerprint. */
struct nat_state {
	__u64 config;
};

/*
 * ---- Devices --------------------------------------------------------------
 *
 * XDP sees what is on the wire of a physical device, the FIB speaks of VLAN
 * devices. `vlan_devices` maps one to the other on the way in, `egress_devices`
 * on the way out.
 */
struct vlan_key {
	__u32 ifindex; /* lower device */
	__be16 vid;    /* 12 bits */
	__u16 _reserved;
};

struct egress_device {
	__u32 ifindex; /* lower device to transmit on */
	__be16 vlan;   /* tag to push, 0 = none */
	__u16 _reserved;
};

/*
 * ---- Verdicts -------------------------------------------------------------
 *
 * Every packet adds one to exactly one of these. PASS_* leave the packet as it
 * came. DROP_* say why a packet of a service could not be sent on. TX_* below
 * them are answers to the sender.
 */
enum verdict {
	VERDICT_TX = 0,	  /* encapsulated, out of the same device */
	VERDICT_REDIRECT, /* encapsulated, out of another one */
	VERDICT_HANDOFF,  /* encapsulated, to the kernel to resolve the next hop */
	VERDICT_PASS_NOT_IP,
	VERDICT_PASS_NO_VIP,   /* TCP or UDP to an address and port not ours */
	VERDICT_PASS_PROTOCOL, /* neither TCP nor UDP */
	VERDICT_PASS_FRAGMENT,
	VERDICT_PASS_MALFORMED, /* shorter than its headers say, or nonsense in them */
	VERDICT_DROP_NO_BACKEND,
	VERDICT_DROP_MTU, /* larger than the egress MTU once encapsulated */
	VERDICT_DROP_NO_ROUTE,
	VERDICT_DROP_PROHIBITED,    /* blackhole or prohibit route */
	VERDICT_DROP_NO_FORWARDING, /* forwarding is off on the ingress device */
	VERDICT_DROP_FIB,	    /* a route that XDP can't follow (a tunnel's), or no source */
	VERDICT_DROP_HEADROOM,	    /* the driver has no room for the outer header */
	VERDICT_DROP_SOURCE,	    /* the service isn't for this source */
	VERDICT_DROP_NOT_ON_LINK,   /* the way to a backend of L2 forwarding has a gateway */
	VERDICT_DROP_NAT_PORTS,	    /* no port left to translate a new flow to */
	VERDICT_DROP_NAT_RATE,	    /* a new flow too many to translate in this jiffy */
	VERDICT_DROP_TTL,	    /* no hop left to forward a translated packet */
	VERDICT_DROP_FRAGMENT,	    /* its first one isn't known, or where that went is gone */
	VERDICT_DROP_MTU_QUIET,	    /* like DROP_MTU, and too many have been told this jiffy */
	VERDICT_TX_TOO_BIG,	    /* like DROP_MTU, and the sender is told what fits */
	VERDICT_TX_ECHO,	    /* an echo request to a VIP, answered */
	VERDICT_MAX,
};

struct verdict_cpu {
	__u64 packets[32]; /* by enum verdict */
};

/*
 * ---- Settings -------------------------------------------------------------
 *
 * One record. The program reads the sources and `echo`; the rest is for the next program
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
	__u32 echo; /* 1: echo requests to VIPs are answered */
	__u32 _reserved;
};

/*
 * ---- Hand-off -------------------------------------------------------------
 *
 * Put before a packet that goes to the kernel because its next hop is not yet
 * resolved. The tc program on the same device reads it and sends the packet by
 * way of the neighbour, which the kernel resolves: that of the packet's destination,
 * or the one named here. As large as metadata can be on older kernels.
 */
struct handoff {
	__u64 cookie; /* the one in .rodata: not from a driver */
	__u32 ifindex;
	__u32 family; /* of next_hop; 0 = where the packet is addressed to */
	struct address next_hop;
};

/*
 * ---- Health checks --------------------------------------------------------
 *
 * A probe is a connection of this node's own to a VIP, of which packets come by
 * the loopback device with a mark. They are encapsulated as a client's would be,
 * to the backend that user space wrote down for the connection before it made it.
 */
struct health_key {
	struct address addr; /* the connection's end on this node */
	__be16 port;
	__u8 protocol;
	__u8 family; /* enum family, of addr and of the VIP */
};

struct health_probe {
	struct backend to; /* addr and family; the rest is of no meaning */
	__u32 ifindex;	   /* packets are routed as if they had come in here */
	__u8 family;	   /* enum family, that of the key once more */
	__u8 l2;	   /* 1: as it is to that very host, not in a tunnel */
	__u16 _reserved;
};

/* Every packet with the mark adds one to exactly one of these. */
enum health_verdict {
	HEALTH_SENT = 0,
	HEALTH_DROP_UNKNOWN,  /* not of a connection that was written down */
	HEALTH_DROP_NO_ROUTE, /* no way to the backend, or no address to send from */
	HEALTH_DROP_HEADROOM, /* no room for the outer header */
	HEALTH_MAX,
};

struct health_cpu {
	__u64 packets[8]; /* by enum health_verdict */
};

/*
 * ---- Trace ----------------------------------------------------------------
 *
 * A test run whose frame starts with the cookie in .rodata (8 bytes) and the
 * ingress interface index (4 bytes, host order) where the MAC addresses would be
 * is a trace: the program decides as it always does, changes no state, and
 * writes what it decided here.
 */
enum trace_flags {
	TRACE_VIP = 1 << 0,	   /* matched a service */
	TRACE_FLOW_HIT = 1 << 1,   /* the flow table had it */
	TRACE_MAGLEV = 1 << 2,	   /* the Maglev table chose */
	TRACE_FIB_CACHED = 1 << 3, /* next hop known from this tick */
	TRACE_AFFINITY = 1 << 4,   /* its client was known */
	TRACE_SNAT = 1 << 8,	   /* translated: outer_saddr and source_port say to what */
	TRACE_ERROR = 1 << 5,	   /* an ICMP error: the flow is the quoted packet's */
	TRACE_FRAGMENT = 1 << 6,   /* a fragment */
};

/* Beside BPF_FIB_LKUP_RET_*, which are below them. */
enum fib_own_results {
	FIB_NOT_ON_LINK = 64,
};

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
	__u16 _reserved[2];
};

/*
 * ---- Decapsulation --------------------------------------------------------
 *
 * The program on a backend. `addresses` is a per-CPU hash from decap_key to
 * decap_counters; `verdicts` is one decap_cpu for each CPU. Every frame adds one
 * to exactly one verdict. PASS_* leave the frame as it came.
 */
struct decap_key {
	struct address addr; /* outer destination */
	__u32 family;	     /* enum family */
};

struct decap_counters {
	__u64 packets;
	__u64 bytes; /* of the inner packets, as their headers say */
};

enum decap_verdict {
	DECAP_UNWRAPPED = 0,
	DECAP_PASS_OTHER,     /* not a tunnel packet for one of the addresses */
	DECAP_PASS_FRAGMENT,  /* a fragment of one: the kernel's to reassemble */
	DECAP_DROP_MALFORMED, /* for one of them, and either header is nonsense */
	DECAP_DROP_ECN,	      /* RFC 6040: outer CE, inner not ECN-capable */
	DECAP_DROP_ADJUST,    /* the driver would not move the frame's start */
	DECAP_MAX,
};

struct decap_cpu {
	__u64 packets[8]; /* by enum decap_verdict */
};

#pragma GCC diagnostic pop

#endif
