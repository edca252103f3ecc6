/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way to a backend, from the kernel's own routes and neighbours.
 *
 * What the FIB said is kept for the backend on this CPU until the next jiffy (1
 * to 10 ms): long enough that a busy backend is looked up once in thousands of
 * packets, short enough that a route or a neighbour that changes is followed at
 * once. Nothing has to be told to forget.
 */
#ifndef TOWPATH_FIB_H
#define TOWPATH_FIB_H

#include "lb/maps.h"
#include "net/parse.h"

enum fib_values {
	AF_INET = 2,
	AF_INET6 = 10,
	FIB_LOOKUP_SOURCE = 1 << 4, /* BPF_FIB_LOOKUP_SRC, since 6.7 */
	FIB_BAD_FLAGS = -22,	    /* -EINVAL: a kernel without it */
	FIB_NO_SOURCE = 9,	    /* BPF_FIB_LKUP_RET_NO_SRC_ADDR, as new */
};

/*
 * Beside the index of a device, which is a positive int: the way is to the host itself
 * and to no gateway. So ways of either kind are never taken for the other.
 */
static const __u32 HOP_L2 = 1U << 31;

static __always_inline void fib_query_v4(struct bpf_fib_lookup *fib, const struct backend *to,
					 const struct settings *set)
{
	fib->family = AF_INET;
	fib->l4_protocol = IPPROTO_IPIP;
	fib->ipv4_src = set->source4.word[3];
	fib->ipv4_dst = to->addr.word[3];
}

static __always_inline void fib_query_v6(struct bpf_fib_lookup *fib, const struct backend *to,
					 const struct settings *set)
{
	fib->family = AF_INET6;
	fib->l4_protocol = IPPROTO_IPV6;
	__builtin_memcpy(fib->ipv6_src, &set->source6, 16);
	__builtin_memcpy(fib->ipv6_dst, &to->addr, 16);
}

/* A VLAN is a device of its own to the FIB, and part of the frame to XDP. */
static __always_inline __u32 fib_ingress(__u32 ifindex, __be16 vlan)
{
	struct vlan_key key = { .ifindex = ifindex, .vid = vlan & bpf_htons(VLAN_VID) };
	__u32 *device = key.vid ? bpf_map_lookup_elem(&vlan_devices, &key) : NULL;

	return device ? *device : ifindex;
}

static __always_inline void fib_egress(struct next_hop *hop, __u32 ifindex, bool vlan_known)
{
	struct egress_device *device = bpf_map_lookup_elem(&egress_devices, &ifindex);

	hop->tx_ifindex = device ? device->ifindex : ifindex;
	hop->tx_vlan = device ? device->vlan : 0;
	/* No device speaks for this VLAN: what goes back where it came from stays in it. */
	if (!device && !vlan_known && ifindex == (hop->rx_ifindex & ~HOP_L2))
		hop->tx_vlan = hop->rx_vlan;
}

/* Where a node has no address the kernel offers 0.0.0.0 or ::1, which nobody accepts. */
static __always_inline bool is_source(const struct address *addr)
{
	return addr->word[0] || addr->word[1] || addr->word[2] || bpf_ntohl(addr->word[3]) > 1;
}

/*
 * Asks for the way of a packet that came in on `ingress`. `fib` then has the egress
 * device, or the next hop's addresses too, and a source address unless it goes on as
 * it is, by `l2`.
 */
static __always_inline int fib_find(void *ctx, const struct backend *to, __u32 ingress, bool l2,
				    struct bpf_fib_lookup *fib)
{
	struct settings *set;
	__u32 zero = 0, flags = 0;
	int result;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	fib->ifindex = ingress;
	if (to->family == FAMILY_V4) {
		fib_query_v4(fib, to, set);
		flags = set->fib_source4 ? FIB_LOOKUP_SOURCE : 0;
	} else {
		fib_query_v6(fib, to, set);
		flags = set->fib_source6 ? FIB_LOOKUP_SOURCE : 0;
	}
	if (l2)
		flags = 0; /* nothing is sent from this node's address */

	result = bpf_fib_lookup(ctx, fib, sizeof(*fib), flags);
	/* Then the source stays the one that user space chose for the device. */
	if (result == FIB_BAD_FLAGS && flags)
		result = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	return result;
}

/*
 * Whether the next hop is the backend itself: the kernel puts a gateway in the place
 * of the destination, of another family too.
 */
static __always_inline bool fib_on_link(const struct bpf_fib_lookup *fib, const struct backend *to)
{
	const __be32 *next = fib->ipv6_dst;

	if (to->family == FAMILY_V4)
		return fib->family == AF_INET && fib->ipv4_dst == to->addr.word[3];
	return next[0] == to->addr.word[0] && next[1] == to->addr.word[1] &&
	       next[2] == to->addr.word[2] && next[3] == to->addr.word[3];
}

/* The outer source that the kernel named, without which nothing can be encapsulated. */
static __always_inline int fib_take_source(struct next_hop *hop, const struct bpf_fib_lookup *fib,
					   bool v4, int result)
{
	if (v4)
		hop->saddr.word[3] = fib->ipv4_src;
	else
		__builtin_memcpy(&hop->saddr, fib->ipv6_src, 16);
	return is_source(&hop->saddr) ? result : FIB_NO_SOURCE;
}

/*
 * Asks the kernel for the way to `to` and fills `hop`, whose rx_* fields say where
 * the packet came from and whether it is to go to that very host.
 * Returns BPF_FIB_LKUP_RET_* or one of ours. Called about once a jiffy for
 * each backend and CPU, and kept out of line so that its stack and code stay out
 * of the hot path.
 */
static __noinline int fib_ask(struct xdp_md *ctx, const struct backend *to, struct next_hop *hop)
{
	struct bpf_fib_lookup fib = {};
	__u32 ingress;
	bool l2, found;
	int result;

	if (!to || !hop)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	l2 = hop->rx_ifindex & HOP_L2;
	ingress = fib_ingress(hop->rx_ifindex & ~HOP_L2, hop->rx_vlan);
	result = fib_find(ctx, to, ingress, l2, &fib);
	found = result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
	if (found && l2 && !fib_on_link(&fib, to))
		result = FIB_NOT_ON_LINK;
	if (found && !l2)
		result = fib_take_source(hop, &fib, to->family == FAMILY_V4, result);
	/* Zero before 5.12, which do not tell. */
	hop->mtu = fib.mtu_result;
	__builtin_memcpy(hop->dmac, fib.dmac, 6);
	__builtin_memcpy(hop->smac, fib.smac, 6);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		hop->tx_ifindex = fib.ifindex; /* the kernel's to transmit, tags and all */
	else
		fib_egress(hop, fib.ifindex, ingress != (hop->rx_ifindex & ~HOP_L2));
	return result;
}

/* What a look-up that found no way means for the packet. */
static __always_inline __u32 fib_verdict(__s32 result)
{
	switch (result) {
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return VERDICT_HANDOFF;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return VERDICT_DROP_PROHIBITED;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* no route, or one that ends here */
		return VERDICT_DROP_NO_ROUTE;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return VERDICT_DROP_NO_FORWARDING;
	case FIB_NOT_ON_LINK:
		return VERDICT_DROP_NOT_ON_LINK;
	default:
		return VERDICT_DROP_FIB;
	}
}

#endif
