/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet at tc that is to have another address: what is read of it, and what becomes of it. For
 * programs of any capability; each has its packets in a map of its own.
 */
#ifndef TOWPATH_XLAT_PACKET_H
#define TOWPATH_XLAT_PACKET_H

#include "abi/xlat.h"
#include "net/address.h"
#include "net/parse.h"

/* An IP header, wherever in the packet it is. */
struct xlat_header {
	struct address saddr;
	struct address daddr;
	__u32 at;    /* bytes into the frame, where it begins ... */
	__u32 l4;    /* ... and where the transport does */
	__u32 id_at; /* where its identification is */
	__be32 id;
	__u32 length;  /* as it says, header included */
	__u16 offset;  /* of a fragment, in 8 bytes */
	__u8 fragment; /* whether it is one */
	__u8 protocol;
	__u8 ip_protocol; /* as the IPv4 header has it, 0 for IPv6 */
	__u8 family;
	__u8 tos;
	__u8 ttl;
	__u32 _reserved;
};

/* Why a packet can't be translated. */
enum xlat_problem {
	XLAT_FINE = -1, /* it can be */
	XLAT_MALFORMED = 0,
	XLAT_NO_PORTS, /* of a protocol that has none */
	XLAT_NO_FIRST, /* a fragment whose first one isn't known */
};

enum xlat_kind {
	XLAT_PLAIN = 0,
	XLAT_ECHO,     /* a request, if it is a client's, or a reply */
	XLAT_ECHO_ODD, /* the other one */
	XLAT_ERROR,    /* an ICMP error; `flow` is what it is about */
};

/* A packet on its way. In a map, for the reason that struct lb_ctx gives. */
struct xlat_packet {
	struct xlat_header ip;
	struct xlat_header quoted;
	struct flow_key flow; /* as it came */
	struct address to;    /* what an address of it becomes */
	__u64 jiffies;
	__u32 kind;    /* enum xlat_kind */
	__u32 length;  /* of the packet, of a segment if there are several: from the IP header on */
	__u32 l3;      /* bytes in front of the IP header */
	__s32 problem; /* enum xlat_problem */
	__be16 to_port; /* what its port becomes */
	__u16 now;	/* in units of nat_life.seen */
	__u8 flags;	/* TCP */
	__u8 plain;	/* TCP's or UDP's, no fragment, with headers in one piece */
	__u8 _reserved[2];
};

/* By who includes this: where it has its packet, and the seed of its table. */
static __always_inline struct xlat_packet *xlat_packet(void);
static __always_inline __u64 xlat_seed(void);

/* What first fragments leave for those that follow. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct xlat_fragment_key);
	__type(value, struct xlat_fragment);
} xlat_fragments SEC(".maps");

#endif
