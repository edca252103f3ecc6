/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way to a backend: what the kernel is asked, as the settings say, and what it answers. */
#ifndef TOWPATH_LB_ROUTE_H
#define TOWPATH_LB_ROUTE_H

#include "lb/maps.h"
#include "net/fib.h"

/* What there is of enum way_flows, for packets of a family. */
static __always_inline __u32 way_flows(__u8 family)
{
	__u32 zero = 0;
	const struct ways *known = bpf_map_lookup_elem(&ways, &zero);

	if (!known)
		return 0;
	return *(const volatile __u32 *)(family == FAMILY_V4 ? &known->flows4 : &known->flows6);
}

/* What a tunnel's header has of the flow within, in one word: its hash, and DSCP and ECN. */
static __always_inline __u64 tunnel_flow(__u32 hash, __u8 tos)
{
	return (__u64)tos << 32 | hash;
}

/*
 * Whether flows to one backend may have different ways. `vary`: their outer sources differ. By
 * IPv6 their flow labels do in any case, which the kernel chooses by.
 */
static __always_inline bool tunnel_ways_differ(__u8 family, __be32 vary)
{
	__u32 flows = way_flows(family);

	if (family == FAMILY_V6 && flows & WAY_BACKENDS)
		return true;
	return flows & WAY_FIELDS || (vary && flows & (WAY_SOURCES | WAY_BACKENDS));
}

/* Has the question be about a tunnel's own header, as tunnel_source() and encap.h write it. */
static __always_inline void tunnel_question(struct bpf_fib_lookup *fib, __u8 family, __u64 flow,
					    __be32 vary)
{
	struct fib_flow fields = {
		.protocol = fib->l4_protocol,
		.tos = flow >> 32,
		.label = (__u32)flow & 0xfffff,
	};

	if (family == FAMILY_V4)
		fib->ipv4_src |= bpf_htonl((__u32)flow) & vary;
	else
		fib->ipv6_src[3] |= bpf_htonl((__u32)flow) & vary;
	fib_flow(fib, family, &fields);
}

/*
 * Asks for the way of a packet that came in on `ingress`. `fib` then has the egress
 * device, or the next hop's addresses too, and a source address unless it goes on as
 * it is, by `l2`. `flow`: see tunnel_flow(); `differs`: what was found holds for no other.
 */
static __always_inline int route_find(void *ctx, const struct address *to, __u8 family,
				      __u32 ingress, bool l2, __u64 flow, bool *differs,
				      struct bpf_fib_lookup *fib)
{
	struct settings *set;
	__u32 zero = 0, source;
	__be32 vary;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	fib->ifindex = ingress;
	if (family == FAMILY_V4) {
		fib->l4_protocol = IPPROTO_IPIP;
		fib_addresses(fib, FAMILY_V4, &set->source4, to);
		source = set->fib_source4;
		vary = set->vary4;
	} else {
		fib->l4_protocol = IPPROTO_IPV6;
		fib_addresses(fib, FAMILY_V6, &set->source6, to);
		source = set->fib_source6;
		vary = set->vary6;
	}
	*differs = !l2 && tunnel_ways_differ(family, vary);
	if (unlikely(*differs))
		tunnel_question(fib, family, flow, vary);
	/* By l2 nothing is sent from this node's address. */
	return fib_lookup(ctx, fib, source && !l2);
}

/*
 * Asks the kernel for the way to `to` and fills `hop`, whose rx_* fields say where
 * the packet came from and whether it is to go to that very host. `flow`: see tunnel_flow().
 * Of one that holds for this packet alone rx_ifindex is 0, which no packet has.
 * Returns BPF_FIB_LKUP_RET_* or one of ours. Called about once a jiffy for
 * each backend and CPU, and kept out of line so that its stack and code stay out
 * of the hot path.
 */
static __noinline int route_ask(struct xdp_md *ctx, const struct address *to, __u32 family,
				struct next_hop *hop, __u64 flow)
{
	bool l2, found, differs = false;
	struct bpf_fib_lookup fib = {};
	__u32 ingress;
	int result;

	if (!to || !hop)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	l2 = hop->rx_ifindex & HOP_L2;
	ingress = fib_ingress(&vlan_devices, hop->rx_ifindex & ~HOP_L2, hop->rx_vlan);
	result = route_find(ctx, to, family, ingress, l2, flow, &differs, &fib);
	found = fib_found(result);
	if (found && l2 && !fib_on_link(&fib, to, family))
		result = FIB_NOT_ON_LINK;
	if (found && !l2)
		result = fib_take_source(hop, &fib, family == FAMILY_V4, result);
	fib_take_hop(&egress_devices, hop, &fib, ingress, result);
	if (differs)
		hop->rx_ifindex = 0;
	return result;
}

/* What a look-up that found no way means for the packet. */
static __always_inline __u32 route_verdict(__s32 result)
{
	switch (result) {
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return VERDICT_HANDOFF;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
		return VERDICT_DROP_BLACKHOLE;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
		return VERDICT_DROP_UNREACHABLE;
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return VERDICT_DROP_PROHIBITED;
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* no route, or one that ends here */
		return VERDICT_DROP_NO_ROUTE;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return VERDICT_DROP_NO_FORWARDING;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return VERDICT_DROP_LWT;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED: /* not said to who gives no length, as is done here */
		return VERDICT_DROP_MTU;
	case FIB_NO_SOURCE:
		return VERDICT_DROP_NO_ADDRESS;
	case FIB_NOT_ON_LINK:
		return VERDICT_DROP_NOT_ON_LINK;
	default:
		return VERDICT_DROP_FIB;
	}
}

#endif
