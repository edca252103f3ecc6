/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A probe is a connection of this node's own to a VIP, of which packets come by
 * the loopback device with a mark. They are encapsulated as a client's would be,
 * to the backend that user space wrote down for the connection before it made it.
 */
#ifndef TOWPATH_ABI_HEALTH_H
#define TOWPATH_ABI_HEALTH_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"
#include "abi/lb.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

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
	__u8 way;	   /* enum health_way */
	__u16 _reserved;
	__u32 encap; /* as a service's, with HEALTH_TUNNEL */
	__u32 _reserved2;
};

/*
 * Other programs' checks: a mark in `health_foreign` stands for a backend. Only `to` and `ifindex` are
 * noted there; the rest is that of the service that the connection is to. The marks of all differ
 * in their low bits only.
 */
enum health_limits {
	HEALTH_FOREIGN = 4096,
	HEALTH_FOREIGN_BITS = 16,
};
BTF_KEEP(enum health_limits);

enum health_way {
	HEALTH_TUNNEL = 0,
	HEALTH_L2,   /* as it is, to that very host */
	HEALTH_HERE, /* as it is, to this node */
};
BTF_KEEP(enum health_way);

/* Every packet with the mark adds one to exactly one of these. */
enum health_verdict {
	HEALTH_SENT = 0,
	HEALTH_DROP_UNKNOWN,  /* of no connection that was written down, no backend or no service */
	HEALTH_DROP_NO_ROUTE, /* no way to the backend, or no address to send from */
	HEALTH_DROP_HEADROOM, /* no room for the outer header */
	HEALTH_MAX,
};
BTF_KEEP(enum health_verdict);

struct health_cpu {
	__u64 packets[8]; /* by enum health_verdict */
};

#pragma GCC diagnostic pop

#endif
