/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way to an address, from the kernel's own routes and neighbours.
 *
 * Nothing here is anybody's in particular: who asks brings the addresses, the tables of devices
 * and the record that the answer is put in.
 */
#ifndef TOWPATH_NET_FIB_H
#define TOWPATH_NET_FIB_H

#include "net/address.h"
#include "net/nexthop.h"
#include "net/parse.h"

enum fib_values {
	AF_INET = 2,
	AF_INET6 = 10,
	FIB_LOOKUP_SOURCE = 1 << 4, /* BPF_FIB_LOOKUP_SRC, since 6.7 */
	FIB_BAD_FLAGS = -22,	    /* -EINVAL: a kernel without it */
	FIB_NO_SOURCE = 9,	    /* BPF_FIB_LKUP_RET_NO_SRC_ADDR, as new */
};

/* Of what is to be routed, from where and to where. */
static __always_inline void fib_addresses(struct bpf_fib_lookup *fib, __u8 family,
					  const struct address *from, const struct address *to)
{
	if (family == FAMILY_V4) {
		fib->family = AF_INET;
		fib->ipv4_src = from->word[3];
		fib->ipv4_dst = to->word[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, from, 16);
		__builtin_memcpy(fib->ipv6_dst, to, 16);
	}
}

/*
 * Asks, in XDP or tc. `name_source`: for the source that the kernel prefers, too; it stays the
 * one that was asked with where the kernel can't tell.
 */
static __always_inline int fib_lookup(void *ctx, struct bpf_fib_lookup *fib, bool name_source)
{
	__u32 flags = name_source ? FIB_LOOKUP_SOURCE : 0;
	int result = bpf_fib_lookup(ctx, fib, sizeof(*fib), flags);

	if (result == FIB_BAD_FLAGS && flags)
		result = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	return result;
}

/* Whether a look-up has found a way, be it that the neighbour is yet to be resolved. */
static __always_inline bool fib_found(int result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/*
 * Whether the next hop is the destination itself: the kernel puts a gateway in the place
 * of the destination, of another family too.
 */
static __always_inline bool fib_on_link(const struct bpf_fib_lookup *fib, const struct address *to,
					__u8 family)
{
	const __be32 *next = fib->ipv6_dst;

	if (family == FAMILY_V4)
		return fib->family == AF_INET && fib->ipv4_dst == to->word[3];
	return next[0] == to->word[0] && next[1] == to->word[1] && next[2] == to->word[2] &&
	       next[3] == to->word[3];
}

/* The source that the kernel named, without which nothing of this node's own can be sent. */
static __always_inline int fib_take_source(struct next_hop *hop, const struct bpf_fib_lookup *fib,
					   bool v4, int result)
{
	if (v4)
		hop->saddr.word[3] = fib->ipv4_src;
	else
		__builtin_memcpy(&hop->saddr, fib->ipv6_src, 16);
	return address_is_source(&hop->saddr) ? result : FIB_NO_SOURCE;
}

/*
 * A VLAN is a device of its own to the FIB, and part of the frame to XDP. `vlan_devices`: a map
 * from struct vlan_key to the index of its device.
 */
static __always_inline __u32 fib_ingress(void *vlan_devices, __u32 ifindex, __be16 vlan)
{
	struct vlan_key key = { .ifindex = ifindex, .vid = vlan & bpf_htons(VLAN_VID) };
	__u32 *device = key.vid ? bpf_map_lookup_elem(vlan_devices, &key) : NULL;

	return device ? *device : ifindex;
}

/* How XDP may send out of a device what came in on another, or on itself. */
static __always_inline __u8 fib_way(__u16 flags, bool same)
{
	__u8 linear = flags & EGRESS_FRAGMENTS ? 0 : WAY_LINEAR;

	if (same && flags & EGRESS_TX)
		return WAY_TX;
	if (flags & EGRESS_REDIRECT)
		return (same ? WAY_BACK : WAY_REDIRECT) | linear;
	return WAY_KERNEL;
}

/*
 * What is on a device's wire but Ethernet has no MAC addresses, whatever the kernel says in their
 * place: it sends such packets itself.
 */
static __always_inline void fib_leave_to_kernel(struct next_hop *hop, __u32 ifindex)
{
	hop->way = WAY_HANDOFF;
	hop->tx_ifindex = ifindex; /* the kernel's to transmit, tags and all */
	__builtin_memset(hop->dmac, 0, sizeof(hop->dmac));
	__builtin_memset(hop->smac, 0, sizeof(hop->smac));
}

/* `egress_devices`: a map from a device's index to its struct egress_device. */
static __always_inline void fib_egress(void *egress_devices, struct next_hop *hop, __u32 ifindex,
				       bool vlan_known)
{
	struct egress_device *device = bpf_map_lookup_elem(egress_devices, &ifindex), *ingress;
	__u32 rx_ifindex = hop->rx_ifindex & ~HOP_L2;
	bool same;

	if (!device || !(device->flags & EGRESS_ETHERNET)) {
		fib_leave_to_kernel(hop, ifindex);
		return;
	}
	same = device->ifindex == rx_ifindex;
	hop->tx_ifindex = device->ifindex;
	hop->tx_vlan = device->vlan;
	/* No device speaks for this VLAN: what goes back where it came from stays in it. */
	if (!vlan_known && ifindex == rx_ifindex)
		hop->tx_vlan = hop->rx_vlan;
	ingress = bpf_map_lookup_elem(egress_devices, &rx_ifindex);
	if (ingress && ingress->flags & EGRESS_GENERIC)
		hop->way = same ? WAY_TX : WAY_REDIRECT;
	else
		hop->way = fib_way(device->flags, same);
}

/* Fills `hop` from what the kernel said. `ingress`: the device it was asked for. */
static __always_inline void fib_take_hop(void *egress_devices, struct next_hop *hop,
					 const struct bpf_fib_lookup *fib, __u32 ingress,
					 int result)
{
	/* Zero before 5.12, which do not tell. */
	hop->mtu = fib->mtu_result;
	__builtin_memcpy(hop->dmac, fib->dmac, 6);
	__builtin_memcpy(hop->smac, fib->smac, 6);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		fib_leave_to_kernel(hop, fib->ifindex);
	else
		fib_egress(egress_devices, hop, fib->ifindex,
			   ingress != (hop->rx_ifindex & ~HOP_L2));
}

#endif
