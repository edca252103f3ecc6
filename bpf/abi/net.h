/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Next hops and devices: what is known of the way out, and kept between packets. */
#ifndef TOWPATH_ABI_NET_H
#define TOWPATH_ABI_NET_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* The way to somewhere, as it was found in some jiffy. */
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

/* Beside BPF_FIB_LKUP_RET_*, which are below them. */
enum fib_own_results {
	FIB_NOT_ON_LINK = 64,
};
BTF_KEEP(enum fib_own_results);

/*
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

#pragma GCC diagnostic pop

#endif
