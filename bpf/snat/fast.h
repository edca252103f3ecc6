/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fast way, for what nearly all packets are: those of known flows, and of flows that Maglev gives
 * a backend, whose next hop is known; and those that are for no service.
 *
 * It decides by the functions that the general way decides by. Its context lies in no map but in a
 * variable whose fields the compiler keeps in registers. There is no trace and no record of these
 * packets, and of each family there is a copy: what is constant, and all that follows from it, is
 * compiled away.
 *
 * Until the packet is changed nothing else is, but see fast_affinity() and fast_nat_new(). Whatever is
 * in doubt until then goes the general way, which decides anew. So all that is here may be left out,
 * and every packet fares the same.
 */
#ifndef TOWPATH_SNAT_FAST_H
#define TOWPATH_SNAT_FAST_H

#include "lb/affinity.h"
#include "lb/choose.h"
#include "lb/counters.h"
#include "lb/fast_leave.h"
#include "lb/l2.h"
#include "lb/sources.h"
#include "lb/tunnel.h"
#include "lb/unwrap.h"
#include "snat/fast_nat.h"

/* So that a family, where only one can be, is a constant. */
static const __u8 ONLY_V4 = FAMILY_V4, ONLY_V6 = FAMILY_V6;

/*
 * Has the flow table learn a flow: in its own entry, if there is one that doesn't hold. A global
 * function, since what it takes is then on no stack but its own: hence the numbers. `key`: index of
 * the service, and the segment's flags above it; `value`: the backend's handle, and the source port
 * above that.
 */
__noinline int fast_learn(__u64 hash, __u64 saddr_first, __u64 saddr_last, __u64 key, __u64 value)
{
	struct flow_key flow = { .sport = value >> 32 };
	struct flow_id id = { .key = &flow, .service = key, .tcp_flags = key >> 32 };
	struct flow_place place = flow_place(hash, bpf_jiffies64());

	((wide64 *)&flow.saddr)[0] = saddr_first;
	((wide64 *)&flow.saddr)[1] = saddr_last;
	flow_lookup(&place, &id);
	flow_learn_as(&place, &id, value);
	return 0;
}

/* Puts the packet in its tunnel. `family`: the backend's. False: it can't be, and is as it was. */
static __always_inline bool fast_encap(struct xdp_md *ctx, const struct lb_ctx *lb,
				       const struct backend *backend, const struct next_hop *hop,
				       const __u8 *family, const bool wraps, __u32 encap)
{
	struct outer outer = {
		.daddr = &backend->addr,
		.family = family,
		.hop = hop,
		.wraps = wraps,
		.encap = encap,
		.between = wraps ? encap_between(encap) : 0,
		.hash = lb->hash >> 32,
	};

	outer.length = outer_length(*family) + outer.between;

	if (!next_hop_fits(lb, hop, outer.length))
		return false;
	tunnel_source(&outer);
	return !xdp_encap(ctx, &lb->pkt, &outer);
}

static __always_inline bool fast_tunnel(struct xdp_md *ctx, const struct lb_ctx *lb,
					const struct backend *backend, const struct next_hop *hop,
					const bool v4, const bool wraps, __u32 encap)
{
	if (!fast_leaves(ctx, lb, hop, lb->rx_ifindex))
		return false;
	if (v4 && likely(backend->family == FAMILY_V4))
		return fast_encap(ctx, lb, backend, hop, &ONLY_V4, wraps, encap);
	return backend->family == FAMILY_V6 &&
	       fast_encap(ctx, lb, backend, hop, &ONLY_V6, wraps, encap);
}

/* Puts the packet in a new frame, for a backend on the link. */
static __always_inline bool fast_relink(struct xdp_md *ctx, const struct lb_ctx *lb,
					const struct next_hop *hop)
{
	return fast_leaves(ctx, lb, hop, lb->rx_ifindex | HOP_L2) && next_hop_fits(lb, hop, 0) &&
	       !relink(ctx, &lb->pkt, hop);
}

/* In the way that the service has. `flags`: its. */
static __always_inline bool fast_forward(struct xdp_md *ctx, const struct lb_ctx *lb,
					 const struct service *service, __u32 flags,
					 const struct backend *backend, const struct next_hop *hop,
					 const bool v4)
{
	if (likely(!(flags & (SERVICE_L2 | SERVICE_ENCAP))))
		return fast_tunnel(ctx, lb, backend, hop, v4, false, 0);
	if (flags & SERVICE_L2)
		return fast_relink(ctx, lb, hop);
	return fast_tunnel(ctx, lb, backend, hop, v4, true, service->encap);
}

/*
 * The handle of the backend that its client is known to have, 0 if it isn't. That the client was seen
 * is noted before the packet is changed: should that come to nothing, the general way notes the same.
 */
__noinline int fast_affinity(struct xdp_md *ctx, __u32 index)
{
	const struct service *service = bpf_map_lookup_elem(&services, &index);
	struct cursor c = cursor_of(ctx);
	struct ethhdr *eth = c.pos;
	struct affinity_place place;
	struct backend *backend;
	struct lb_ctx lb = {};
	bool taken;

	if (!service || (void *)(eth + 1) > c.end)
		return 0;
	if (ethertype_of(eth) == bpf_htons(ETH_P_IP))
		taken = take_plain(c, &lb.pkt, true);
	else
		taken = take_plain(c, &lb.pkt, false);
	if (!taken)
		return 0;
	backend = affinity_known(&lb, index, service, &place, hash_client(&lb.pkt.flow, hash_seed));
	return backend ? backend->handle : 0;
}

/* The flow is not known yet, or not any more. */
static __always_inline void fast_note_new(struct lb_ctx *lb, __u32 index,
					  const struct service *service, __u32 handle)
{
	const wide64 *saddr = (const wide64 *)&lb->pkt.flow.saddr;

	count_backend_flow(lb->cpu, handle);
	if (!(service->flags & SERVICE_NO_FLOW_TABLE) && flow_may_learn(lb->cpu, lb->jiffies))
		fast_learn(lb->hash, saddr[0], saddr[1], index | (__u64)lb->pkt.tcp_flags << 32,
			   handle | (__u64)lb->pkt.flow.sport << 32);
	count_service(lb, index, true, VERDICT_TX);
}

static __always_inline void fast_hash(struct lb_ctx *lb)
{
	lb->jiffies = bpf_jiffies64();
	lb->hash = hash_flow(&lb->pkt.flow, hash_seed);
}

/* For a packet whose connection id may name its backend: sends it there, or leaves it as it is. */
static __always_inline int fast_named(struct xdp_md *ctx, struct lb_ctx *lb, __u32 index,
				      const bool v4)
{
	const __u32 at = sizeof(struct ethhdr) + plain_ip(v4);
	__u64 end = sizeof(struct ethhdr) + lb->pkt.l3_length;
	struct flow_id id = { .key = &lb->pkt.flow, .service = index };
	struct backend *backend, *known = NULL;
	struct flow_place place = {};
	const struct service *service;
	struct backend_cpu *stats;
	__u64 said;

	said = quic_look(ctx, index, at | end << 32);
	/* Once more: to keep it would cost packets of other services. */
	service = bpf_map_lookup_elem(&services, &index);
	if (!service || said >> 32 != QUIC_NAMED)
		return FAST_DOUBT;
	backend = backend_of(said);
	if (!backend)
		return FAST_DOUBT;
	fast_hash(lb);
	if (!(service->flags & SERVICE_NO_FLOW_TABLE)) {
		place = flow_place(lb->hash, lb->jiffies);
		known = known_backend(&place, &id, service);
	}
	fast_place(ctx, lb);
	stats = backend_stats(lb->cpu, said & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats || !fast_forward(ctx, lb, service, service->flags, backend, &stats->hop, v4))
		return FAST_DOUBT;

	count_sent(lb, stats);
	count_quic(lb->cpu, index, QUIC_NAMED);
	if (unlikely(!known)) {
		fast_note_new(lb, index, service, said);
	} else {
		if (likely(known == backend))
			flow_note(&place, &id);
		count_service(lb, index, false, VERDICT_TX);
	}
	return fast_sent(lb, &stats->hop);
}

/* For a packet of a service. */
static __always_inline int fast_balance(struct xdp_md *ctx, struct lb_ctx *lb, __u32 index,
					const bool v4)
{
	__u32 key = index;
	const struct service *service = bpf_map_lookup_elem(&services, &key);
	struct flow_id id = {
		.key = &lb->pkt.flow,
		.service = index,
		.tcp_flags = lb->pkt.tcp_flags,
	};
	struct flow_place place = {};
	struct backend *backend = NULL;
	struct backend_cpu *stats;
	__u32 sources, special, handle;

	if (!service)
		return FAST_DOUBT;
	sources = *(const volatile __u32 *)&service->sources;
	special = service->flags;
	if (unlikely(sources | (special & (SERVICE_SNAT | SERVICE_LOCAL | SERVICE_QUIC)))) {
		__u32 kind = special & (SERVICE_SNAT | SERVICE_LOCAL);

		if (sources && !source_allowed(&lb->pkt.flow, sources))
			return FAST_DOUBT;
		if (kind == SERVICE_SNAT) {
			if (!v4)
				return FAST_DOUBT;
			if (unlikely(tcp_begins(id.tcp_flags)))
				return FAST_BEGINS;
			fast_hash(lb);
			if (likely(lb->pkt.flow.protocol == IPPROTO_TCP))
				return fast_nat_known(ctx, lb, index, IPPROTO_TCP);
			return fast_nat_known(ctx, lb, index, IPPROTO_UDP);
		}
		if (kind)
			return FAST_DOUBT;
		if (special & SERVICE_QUIC)
			return fast_named(ctx, lb, index, v4);
	}
	fast_hash(lb);
	if (likely(!(special & SERVICE_NO_FLOW_TABLE))) {
		place = flow_place(lb->hash, lb->jiffies);
		backend = known_backend(&place, &id, service);
	}
	if (unlikely(!backend)) {
		if (id.tcp_flags & TCP_RST || special & FAST_NEVER_NEW)
			return FAST_DOUBT;
		if (unlikely(service->affinity))
			backend = backend_of(fast_affinity(ctx, index));
		else
			backend = hash_backend(lb, service, lb->hash >> 32);
		if (!backend)
			return FAST_DOUBT;
		place.flow = NULL;
	}
	handle = backend->handle;
	fast_place(ctx, lb);
	stats = backend_stats(lb->cpu, handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats)
		return FAST_DOUBT;
	if (!fast_forward(ctx, lb, service, special, backend, &stats->hop, v4))
		return FAST_DOUBT;

	count_sent(lb, stats);
	if (likely(place.flow)) {
		flow_note(&place, &id);
		count_service(lb, index, false, VERDICT_TX);
	} else {
		fast_note_new(lb, index, service, handle);
	}
	return fast_sent(lb, &stats->hop);
}

/*
 * Whether a packet may be in a tunnel, by its port. parse_plain() has looked at the frame, of which
 * this is read once more: to have it at hand would cost all packets.
 */
static __noinline bool fast_wrapped(struct xdp_md *ctx, bool v4)
{
	struct cursor c = cursor_of(ctx);
	struct packet pkt = {};
	bool taken = v4 ? take_plain(c, &pkt, true) : take_plain(c, &pkt, false);

	return taken && has_tunnel_port(&pkt.flow);
}

/* For a packet whose destination is no VIP, unless a prefix has it. */
static __always_inline int fast_pass(struct xdp_md *ctx, struct lb_ctx *lb, const bool v4)
{
	if (vip_lengths_with_ports(v4))
		return FAST_DOUBT;
	if (unlikely(nat_may_be(&lb->pkt.flow))) {
		if (takes_udp && fast_wrapped(ctx, v4))
			return FAST_DOUBT;
		return v4 ? fast_nat_reply(ctx) : FAST_DOUBT;
	}
	if (takes_udp && fast_wrapped(ctx, v4))
		return FAST_DOUBT;
	fast_place(ctx, lb);
	count_verdict(lb->cpu, VERDICT_PASS_NO_VIP);
	return XDP_PASS;
}

static __always_inline int fast_family(struct xdp_md *ctx, const bool v4)
{
	struct lb_ctx lb = {};
	__u32 exact;
	int action;

	if (!parse_plain(cursor_of(ctx), &lb.pkt, v4)) {
		barrier(); /* or what is returned is set before each test */
		return FAST_UNPARSED;
	}
	exact = service_exact(&lb.pkt.flow);
	action = likely(exact) ? fast_balance(ctx, &lb, exact, v4) : fast_pass(ctx, &lb, v4);
	if (likely(action >= 0))
		return action;
	if (takes_udp && !exact && fast_wrapped(ctx, v4))
		return FAST_UNPARSED;
	if (v4 && action == FAST_BEGINS)
		return FAST_FLOW - (int)(exact * FLOW_SERVICE | FLOW_BEGINS_V4);
	return FAST_FLOW - (int)(exact * FLOW_SERVICE | (v4 ? FLOW_PLAIN_V4 : FLOW_PLAIN_V6));
}

/* Each with a stack of its own, which the general way's doesn't come on top of. */
static __noinline int fast_v4(struct xdp_md *ctx)
{
	return fast_family(ctx, true);
}

static __noinline int fast_v6(struct xdp_md *ctx)
{
	return fast_family(ctx, false);
}

/* What fast_v4() has left, if that begins a flow which is to be translated. */
static __always_inline int fast_begin(struct xdp_md *ctx, int left)
{
	__u32 flow = FAST_FLOW - left;

	if (likely(left >= 0))
		return left;
	barrier(); /* or packets that are sent are asked for twice */
	if (left == FAST_UNPARSED || (flow & FLOW_BEGINS_V4) != FLOW_BEGINS_V4)
		return left;
	return fast_nat_new(ctx, left);
}

/* Returns what is to be done with the packet, or enum fast. */
static __always_inline int fast_way(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);
	struct ethhdr *eth = c.pos;

	/* A trace is asked for in the place of addresses. */
	if ((void *)(eth + 1) > c.end || *(wide64 *)eth == trace_cookie) {
		barrier(); /* as in fast_family(), and below */
		return FAST_UNPARSED;
	}
	if (likely(ethertype_of(eth) == bpf_htons(ETH_P_IP)))
		return fast_begin(ctx, fast_v4(ctx));
	if (likely(ethertype_of(eth) == bpf_htons(ETH_P_IPV6)))
		return fast_v6(ctx);
	barrier();
	return FAST_UNPARSED;
}

#endif
