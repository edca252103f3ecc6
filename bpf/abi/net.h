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
	__be16 rx_vlan;	      /* tag control word, 0 = untagged */
	__be16 tx_vlan;
	__u16 mtu;	  /* 0 = not known */
	__u8 way;	  /* enum way_out */
	__u8 vary;	  /* low bits of the outer source that the flow's hash fills */
	__u32 tx_ifindex; /* ... send out of there */
	__u8 dmac[6];	  /* both as they lie in a frame */
	__u8 smac[6];
};

/*
 * How a packet leaves. The first three have the number of the verdict that they lead to; of the
 * others the low bits are that number.
 */
enum way_out {
	WAY_TX = 0,	  /* where it came in, by XDP_TX */
	WAY_REDIRECT = 1, /* out of another device, by XDP_REDIRECT */
	WAY_HANDOFF = 2,  /* the kernel finds out to whom, and sends it */
	WAY_VERDICT = 63, /* the bits of the verdict: all have fewer */

	WAY_OTHER = 64,
	WAY_BACK = WAY_OTHER + WAY_TX,	      /* where it came in, by XDP_REDIRECT */
	WAY_KERNEL = WAY_OTHER + WAY_HANDOFF, /* the kernel sends the frame as it is */
	WAY_LINEAR = 128,		      /* with one of these: no frame in fragments */
};
BTF_KEEP(enum way_out);

/* Beside BPF_FIB_LKUP_RET_*, which are below them. */
enum fib_own_results {
	FIB_NOT_ON_LINK = 64,
};
BTF_KEEP(enum fib_own_results);

/*
 * XDP sees what is on the wire of a physical device, the FIB speaks of VLAN
 * devices. `vlan_devices` maps one to the other on the way in, `egress_devices`
 * on the way out, and says of every device what can leave by it.
 */
struct vlan_key {
	__u32 ifindex; /* lower device */
	__be16 vid;    /* 12 bits */
	__u16 _reserved;
};

struct egress_device {
	__u32 ifindex; /* device to transmit on: itself, or the lower device */
	__be16 vlan;   /* tag to push, 0 = none */
	__u16 flags;   /* enum egress_flags, of the device to transmit on */
};

/* Of a device that isn't in the table nothing is known: the kernel sends what leaves by it. */
enum egress_flags {
	EGRESS_ETHERNET = 1 << 0,  /* takes Ethernet frames */
	EGRESS_TX = 1 << 1,	   /* sends back by XDP_TX what came in on it */
	EGRESS_REDIRECT = 1 << 2,  /* its driver takes frames from XDP (ndo_xdp_xmit) */
	EGRESS_FRAGMENTS = 1 << 3, /* those in fragments too */
	EGRESS_GENERIC = 1 << 4,   /* the program runs in generic mode: its packets go anywhere */
	EGRESS_OURS = 1 << 5,	   /* packets that are balanced come in on it */
};
BTF_KEEP(enum egress_flags);

/* Frames that XDP has sent and the kernel has then refused; the value is how many. */
struct refusal {
	__u32 ifindex; /* of the device that they were for */
	__u32 error;   /* errno, 0 = its queue was full */
};

#pragma GCC diagnostic pop

#endif
