/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way to a backend: what the kernel is asked, as the settings say, and what it answers. */
#ifndef TOWPATH_LB_ROUTE_H
#define TOWPATH_LB_ROUTE_H

#include "lb/maps.h"
#include "net/fib.h"

/*
 * Asks for the way of a packet that came in on `ingress`. `fib` then has the egress
 * device, or the next hop's addresses too, and a source address unless it goes on as
 * it is, by `l2`.
 */
static __always_inline int route_find(void *ctx, const struct address *to, __u8 family,
				      __u32 ingress, bool l2, struct bpf_fib_lookup *fib)
{
	struct settings *set;
	__u32 zero = 0, source;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	fib->ifindex = ingress;
	if (family == FAMILY_V4) {
		fib->l4_protocol = IPPROTO_IPIP;
		fib_addresses(fib, FAMILY_V4, &set->source4, to);
		source = set->fib_source4;
	} else {
		fib->l4_protocol = IPPROTO_IPV6;
		fib_addresses(fib, FAMILY_V6, &set->source6, to);
		source = set->fib_source6;
	}
	/* By l2 nothing is sent from this node's address. */
	return fib_lookup(ctx, fib, source && !l2);
}

/*
 * Asks the kernel for the way to `to` and fills `hop`, whose rx_* fields say where
 * the packet came from and whether it is to go to that very host.
 * Returns BPF_FIB_LKUP_RET_* or one of ours. Called about once a jiffy for
 * each backend and CPU, and kept out of line so that its stack and code stay out
 * of the hot path.
 */
static __noinline int route_ask(struct xdp_md *ctx, const struct address *to, __u32 family,
				struct next_hop *hop)
{
	struct bpf_fib_lookup fib = {};
	__u32 ingress;
	bool l2, found;
	int result;

	if (!to || !hop)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	l2 = hop->rx_ifindex & HOP_L2;
	ingress = fib_ingress(&vlan_devices, hop->rx_ifindex & ~HOP_L2, hop->rx_vlan);
	result = route_find(ctx, to, family, ingress, l2, &fib);
	found = fib_found(result);
	if (found && l2 && !fib_on_link(&fib, to, family))
		result = FIB_NOT_ON_LINK;
	if (found && !l2)
		result = fib_take_source(hop, &fib, family == FAMILY_V4, result);
	fib_take_hop(&egress_devices, hop, &fib, ingress, result);
	return result;
}

/* What a look-up that found no way means for the packet. */
static __always_inline __u32 route_verdict(__s32 result)
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
