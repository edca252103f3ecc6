/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way to a backend: what the kernel is asked, as the settings say, and what it answers. */
#ifndef TOWPATH_LB_ROUTE_H
#define TOWPATH_LB_ROUTE_H

#include "lb/maps.h"
#include "lb/tunnel.h"
#include "net/fib.h"

/* What is to be masked of questions about packets of a family. NULL: there is no telling. */
static __always_inline const struct way_masks *way_masks_of(__u8 family)
{
	__u32 zero = 0;
	const struct ways *known = bpf_map_lookup_elem(&ways, &zero);

	if (!known)
		return NULL;
	return family == FAMILY_V4 ? &known->v4 : &known->v6;
}

/* The family of what is asked for, and in the same word, above it, the tunnel's kind. */
enum route_to {
	ROUTE_FAMILY = 255,
	ROUTE_KIND_SHIFT = 8,
};

static __always_inline __u32 route_to(__u8 family, __u32 encap)
{
	return (encap & ~(__u32)ENCAP_KIND) | (encap & ENCAP_KIND) << ROUTE_KIND_SHIFT | family;
}

/* What a tunnel's header has of the flow within, in one word: its hash, and DSCP and ECN. */
static __always_inline __u64 tunnel_flow(__u32 hash, __u8 tos)
{
	return (__u64)tos << 32 | hash;
}

/* Has the question be about a tunnel's own header, as tunnel_source() and encap.h write it. */
static __always_inline void tunnel_question(struct bpf_fib_lookup *fib, __u8 family, __u64 flow,
					    __be32 vary, __u32 mask)
{
	__u32 hash = (__u32)flow & mask;

	if (family == FAMILY_V4) {
		fib->ipv4_src |= bpf_htonl(hash) & vary;
		fib->tos = flow >> 32 & mask;
	} else {
		fib->ipv6_src[3] |= bpf_htonl(hash) & vary;
		fib->flowinfo = bpf_htonl((__u32)(flow >> 32 & mask) << 20 | (hash & 0xfffff));
	}
}

/*
 * The protocol of a tunnel's own header, and the ports where that has some. `to`: see route_to();
 * `hash`: of the flow within, as far as it may be asked about.
 */
static __always_inline void tunnel_protocol(struct bpf_fib_lookup *fib, __u32 to, __u32 hash)
{
	switch (to >> ROUTE_KIND_SHIFT & ENCAP_KIND) {
	case ENCAP_IPIP:
		fib->l4_protocol = (to & ROUTE_FAMILY) == FAMILY_V4 ? IPPROTO_IPIP : IPPROTO_IPV6;
		break;
	case ENCAP_GRE:
		fib->l4_protocol = IPPROTO_GRE;
		break;
	default:
		fib->l4_protocol = IPPROTO_UDP;
		fib->sport = bpf_htons(encap_source_port(hash));
		fib->dport = bpf_htons(to >> ENCAP_PORT_SHIFT);
	}
}

/*
 * Asks for the way of a packet that came in on `ingress`. `fib` then has the egress
 * device, or the next hop's addresses too, and a source address unless it goes on as
 * it is, by `l2`. `kind`: see route_to(); `flow`: see tunnel_flow(); `mask`: of the bits that are set here
 * what was found holds for no other.
 */
static __always_inline int route_find(void *ctx, const struct address *to, __u32 kind,
				      __u32 ingress, bool l2, __u64 flow, __u32 *mask,
				      struct bpf_fib_lookup *fib)
{
	__u8 family = kind & ROUTE_FAMILY;
	const struct way_masks *masks = way_masks_of(family);
	struct settings *set;
	__u32 zero = 0, source;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set || !masks)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	fib->ifindex = ingress;
	*mask = *(const volatile __u32 *)&masks->tunnel;
	tunnel_protocol(fib, kind, (__u32)flow & *mask);
	if (family == FAMILY_V4) {
		fib_addresses(fib, FAMILY_V4, &set->source4, to);
		tunnel_question(fib, FAMILY_V4, flow, set->vary4, *mask);
		source = set->fib_source4;
	} else {
		fib_addresses(fib, FAMILY_V6, &set->source6, to);
		tunnel_question(fib, FAMILY_V6, flow, set->vary6, *mask);
		source = set->fib_source6;
	}
	/* By l2 nothing is sent from this node's address. */
	return fib_lookup(ctx, fib, source && !l2);
}

/*
 * Asks the kernel for the way to `to` and fills `hop`, whose rx_* fields say where
 * the packet came from and whether it is to go to that very host. `kind`: see route_to(); `flow`:
 * see tunnel_flow().
 * Of one that holds for this packet alone rx_ifindex is 0, which no packet has.
 * Returns BPF_FIB_LKUP_RET_* or one of ours. Called about once a jiffy for
 * each backend and CPU, and kept out of line so that its stack and code stay out
 * of the hot path.
 */
static __noinline int route_ask(struct xdp_md *ctx, const struct address *to, __u32 kind,
				struct next_hop *hop, __u64 flow)
{
	struct bpf_fib_lookup fib = {};
	__u8 family = kind & ROUTE_FAMILY;
	__u32 ingress, mask = 0;
	bool l2, found;
	int result;

	if (!to || !hop)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	l2 = hop->rx_ifindex & HOP_L2;
	ingress = fib_ingress(&vlan_devices, hop->rx_ifindex & ~HOP_L2, hop->rx_vlan);
	result = route_find(ctx, to, kind, ingress, l2, flow, &mask, &fib);
	found = fib_found(result);
	if (found && l2 && !fib_on_link(&fib, to, family))
		result = FIB_NOT_ON_LINK;
	if (found && !l2) {
		result = fib_take_source(hop, &fib, family == FAMILY_V4, result);
		hop->vary = tunnel_varies(family);
	}
	fib_take_hop(&egress_devices, hop, &fib, ingress, result);
	hop->rx_ifindex &= ~mask;
	return result;
}

enum route_results {
	ROUTE_OWN = 14,	  /* FIB_NOT_ON_LINK */
	ROUTE_ERROR = 15, /* and whatever a later kernel may answer */
	ROUTE_RESULTS = 16,
};

/*
 * What a look-up that found no way means for the packet, by BPF_FIB_LKUP_RET_*. A table in memory:
 * a verdict from there is any number to the verifier, which looks at what follows once and not for
 * each of them.
 */
static const volatile __u8 route_verdicts[ROUTE_RESULTS] = {
	VERDICT_DROP_FIB, /* SUCCESS, which is none of these */
	VERDICT_DROP_BLACKHOLE,	    VERDICT_DROP_UNREACHABLE, VERDICT_DROP_PROHIBITED,
	VERDICT_DROP_NO_ROUTE, /* NOT_FWDED: none, or one that ends here */
	VERDICT_DROP_NO_FORWARDING, VERDICT_DROP_LWT,	      VERDICT_HANDOFF, /* NO_NEIGH */
	VERDICT_DROP_MTU,	 /* FRAG_NEEDED: not said to who gives no length, as is done here */
	VERDICT_DROP_NO_ADDRESS, /* NO_SRC_ADDR */
	VERDICT_DROP_FIB,	    VERDICT_DROP_FIB,	      VERDICT_DROP_FIB,
	VERDICT_DROP_FIB,	    VERDICT_DROP_NOT_ON_LINK, VERDICT_DROP_FIB,
};

static __always_inline __u32 route_verdict(__s32 result)
{
	__u32 at = result;

	if (result == FIB_NOT_ON_LINK)
		at = ROUTE_OWN;
	else if (at >= ROUTE_OWN)
		at = ROUTE_ERROR;
	barrier_var(at);
	return route_verdicts[at % ROUTE_RESULTS];
}

#endif
