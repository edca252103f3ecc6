/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Forwarding by source NAT. A client's packet gets the backend as its destination and one
 * of our addresses and ports as its source; what the backend answers comes back to us and
 * is translated to what the client expects. Both are forwarded as a router would: one hop
 * less, and the way that the kernel's routes say.
 */
#ifndef TOWPATH_SNAT_SNAT_H
#define TOWPATH_SNAT_SNAT_H

#include "lb/counters.h"
#include "lb/local.h"
#include "lb/transmit.h"
#include "snat/allocate.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "snat/rewrite_fragment.h"
#include "snat/rewrite_icmp.h"

/*
 * Most of what follows is in global functions, which find the packet by its slot: the verifier
 * looks at each of them once, whoever calls it and whatever it then knows.
 */

/* Has the question be about the translated packet, where `mask` says so. */
static __always_inline void nat_question(struct bpf_fib_lookup *fib, const struct lb_ctx *lb,
					 const struct nat *n, __u32 family, __u32 mask)
{
	fib_addresses(fib, family, &n->tuple.saddr, &n->tuple.daddr);
	fib->l4_protocol = lb->pkt.flow.protocol & mask;
	fib->sport = n->tuple.sport & mask;
	fib->dport = n->tuple.dport & mask;
	if (family == FAMILY_V4)
		fib->tos = lb->pkt.tos & mask;
	else
		fib->flowinfo = bpf_htonl((lb->pkt.tos & mask) << 20);
}

/*
 * Asks the kernel for the way of a packet between these two, into n->hop. Of one that holds for
 * this packet alone rx_ifindex is 0, which no packet has.
 */
__noinline int nat_ask(struct xdp_md *ctx, __u32 slot, __u32 family, __u32 to_client)
{
	const struct way_masks *masks = way_masks_of(family);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct bpf_fib_lookup fib = {};
	struct nat *n = nat_of(slot);
	__u32 ingress, mask;
	struct next_hop *hop;
	int result;

	if (!n || !lb || !masks)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	hop = &n->hop;
	mask = *(const volatile __u32 *)(to_client ? &masks->client : &masks->backend);
	ingress = fib_ingress(&vlan_devices, hop->rx_ifindex, hop->rx_vlan);
	fib.ifindex = ingress;
	nat_question(&fib, lb, n, family, mask);
	result = fib_lookup(ctx, &fib, false);
	fib_take_hop(&egress_devices, hop, &fib, ingress, result);
	hop->rx_ifindex &= ~mask;
	return result;
}

/*
 * Fills n->hop: what is `kept`, if it `holds`, or the kernel's answer, which is kept then.
 * `saddr` goes with it; `to_client`: see nat_ask(). Returns how packets leave by it (enum way_out),
 * or the verdict where there is no way.
 */
static __always_inline __u32 nat_next_hop(struct xdp_md *ctx, struct lb_ctx *lb, struct nat *n,
					  struct next_hop *kept, bool holds,
					  const struct address *saddr, bool to_client)
{
	int result;

	if (likely(holds)) {
		TRACE_FLAG(lb, TRACE_FIB_CACHED);
		n->hop = *kept;
	} else {
		next_hop_begin(lb, &n->hop, lb->rx_ifindex);
		n->hop.saddr = *saddr;
		result = nat_ask(ctx, lb->slot, lb->pkt.flow.family, to_client);
		if (!next_hop_keep(lb, kept, &n->hop, result))
			return route_verdict(result);
	}
	return n->hop.way;
}

/* These write the packet; 0, or -1 if the driver left no room. */
__noinline int nat_write_packet(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);

	return lb && n ? translate(ctx, &lb->pkt, &n->tuple, &n->hop) : -1;
}

__noinline int nat_write_error(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);

	return lb && n ? translate_error(ctx, &lb->pkt, &n->tuple, &n->quote, &n->hop) : -1;
}

__noinline int nat_write_fragment(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);

	return lb && n ? translate_fragment(ctx, lb, &n->tuple, &n->hop) : -1;
}

static __always_inline int nat_rewrite(struct xdp_md *ctx, const struct lb_ctx *lb,
				       const struct nat *n)
{
	if (unlikely(n->quote.at))
		return nat_write_error(ctx, lb->slot);
	if (unlikely(lb->pkt_flags & PKT_FRAGMENT))
		return nat_write_fragment(ctx, lb->slot);
	return nat_write_packet(ctx, lb->slot);
}

/* Sends the packet as n says by n->hop in the way of n->way, which may be a verdict: no way. */
__noinline int nat_send(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	__u32 tx_ifindex, way;

	if (!lb || !n)
		return VERDICT_DROP_HEADROOM;
	way = n->way;
	tx_ifindex = n->hop.tx_ifindex;
	TRACE(lb, hop, n->hop);
	if (unlikely(!is_sent(way)))
		return way;
	if (!next_hop_fits(lb, &n->hop, 0))
		return n->quote.at ? VERDICT_DROP_MTU : too_big(ctx, slot, n->hop.mtu);
	if (unlikely(nat_rewrite(ctx, lb, n)))
		return VERDICT_DROP_HEADROOM;
	return transmit(ctx, lb, way, tx_ifindex, 0);
}

/* Whether a packet with this TTL, or hop limit, goes one hop further. */
static __always_inline bool nat_lives_on(__u8 ttl)
{
	return ttl > 1;
}

/* What a packet must be, so that it can be translated: PARSE_OK or the verdict. */
static __always_inline int nat_check(const struct packet *pkt)
{
	if (unlikely(!nat_lives_on(pkt->ttl)))
		return VERDICT_DROP_TTL;
	return likely(pkt->l4_offset <= TRANSLATE_L4 - 20) ? PARSE_OK : VERDICT_PASS_PROTOCOL;
}

/* How long the service's flows of UDP are remembered, as entries have it. */
static __always_inline __u16 nat_timeout_of(__u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);

	return service ? jiffies_units(service->flow_timeout, NAT_SEEN_SHIFT) : 0;
}

/* Whether a packet of this service belongs to the flow that was found, of this backend. */
static __always_inline bool nat_still(const struct lb_ctx *lb, const struct nat *n,
				      const struct nat_life *life, const struct backend *backend,
				      __u32 service)
{
	return backend && backend->service == service && !nat_begins_anew(lb, n, life, backend);
}

/* The backend that a flow of this service has, NULL if it is a new one. */
static __noinline struct backend *nat_backend(struct xdp_md *ctx, struct lb_ctx *lb, struct nat *n,
					      __u32 service)
{
	struct backend *backend;
	struct nat_life *life;

	n->timeout = lb->pkt.flow.protocol == IPPROTO_UDP ? nat_timeout_of(service) : 0;
	n->flags = lb->pkt.tcp_flags;
	n->quote.at = 0;
	if (!nat_find(lb, n))
		return NULL;
	backend = backend_of(n->handle);
	life = nat_life_of(n);
	if (likely(nat_still(lb, n, life, backend, service))) {
		if (!lb->traced)
			nat_client_seen(lb, n, life);
		return backend;
	}
	if (!lb->traced)
		nat_forget(lb->slot);
	n->search.way = NAT_WAYS;
	return NULL;
}

/*
 * Whether a fragment goes where its packet's others go, given the backend of the flow: the
 * first one says so, and later ones are lost if the flow has another by now.
 */
static __always_inline bool nat_keeps_together(const struct lb_ctx *lb, __u32 handle)
{
	return slow_path_handle(lb->slot, handle) == handle;
}

/* The backend that a new flow is to have. */
static __always_inline void nat_give(const struct lb_ctx *lb, struct nat *n,
				     const struct backend *backend)
{
	n->handle = backend->handle;
	n->backend_port = backend->port ?: lb->pkt.flow.dport;
}

/* Gives a new flow to a backend: PARSE_OK or the verdict. The backend is then in n->handle. */
static __noinline int nat_admit(struct lb_ctx *lb, struct nat *n, const struct backend *backend)
{
	struct flow_cpu *learnt;
	int result;

	nat_give(lb, n, backend);
	if (lb->traced) {
		nat_candidate(lb, n, n->search.first);
		return PARSE_OK;
	}
	learnt = learnt_now(lb->cpu, lb->jiffies);
	if (!learnt || learnt->learnt++ >= nat_learn)
		return VERDICT_DROP_NAT_RATE;
	/*
	 * What nobody has confirmed gives way only when nothing else is left. Once in a jiffy is
	 * enough to find that out: a flood would have to pay for it with each of its packets.
	 */
	if (!learnt->full) {
		result = nat_bind(lb->slot, 0);
		if (nat_is_bound(result))
			return PARSE_OK;
		learnt->full = result == NAT_FULL;
	}
	return nat_is_bound(nat_bind(lb->slot, 1)) ? PARSE_OK : VERDICT_DROP_NAT_PORTS;
}

/* What a client's packet becomes on its way to the flow's backend. */
static __always_inline void nat_towards(struct nat *n, const struct backend *backend, bool v4)
{
	const volatile struct address *source =
		&nat_addresses[n->search.source % (2 * NAT_SOURCES)];

	n->tuple.saddr.word[3] = n->search.saddr;
	n->tuple.daddr.word[3] = backend->addr.word[3];
	for (int i = 0; i < 3; i++) {
		n->tuple.saddr.word[i] = v4 ? 0 : source->word[i];
		n->tuple.daddr.word[i] = v4 ? 0 : backend->addr.word[i];
	}
	n->tuple.sport = n->search.port;
	n->tuple.dport = n->backend_port;
}

/* Sends a client's packet to the flow's backend. */
__noinline int nat_to_backend(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct backend *backend;
	struct backend_cpu *stats;
	struct trace *trace;
	__u32 verdict;

	if (!lb || !n)
		return VERDICT_DROP_NO_BACKEND;
	backend = backend_of(n->handle);
	stats = backend_stats(lb->cpu, n->handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!backend || !stats)
		return VERDICT_DROP_NO_BACKEND;
	RECORD(lb, service, backend->service);
	note_backend(lb, backend);
	nat_towards(n, backend, lb->pkt.flow.family == FAMILY_V4);
	trace = trace_of(lb);
	if (trace) {
		trace->flags |= TRACE_SNAT;
		trace->destination_port = n->tuple.dport;
		trace->outer_saddr = n->tuple.saddr;
		if (n->search.way < NAT_WAYS)
			trace->source_port = n->search.port;
	}
	n->way = nat_next_hop(ctx, lb, n, &stats->hop,
			      next_hop_holds(lb, &stats->hop, lb->rx_ifindex), &n->tuple.saddr,
			      false);
	verdict = nat_send(ctx, slot);
	if (is_sent(verdict))
		count_sent(lb, stats);
	return verdict;
}

/*
 * Sends a client's later fragment after the first one. Without a translation it is lost: the
 * first one has met no backend, or one that no flow of the client's has any more.
 */
__noinline int nat_follow(struct xdp_md *ctx, __u32 slot, __u32 service)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	int result;

	if (!lb || !n)
		return VERDICT_DROP_FRAGMENT;
	n->fresh = 0;
	if (backend_of(lb->first_handle) && is_local(lb->first_handle)) {
		TRACE_FLAG(lb, TRACE_FRAGMENT);
		return local_translate(ctx, slot, lb->first_handle);
	}
	result = nat_check(&lb->pkt);
	if (result != PARSE_OK)
		return result;
	if (!nat_choices(lb) || !nat_backend(ctx, lb, n, service) ||
	    !nat_keeps_together(lb, n->handle))
		return VERDICT_DROP_FRAGMENT;
	TRACE_FLAG(lb, TRACE_FLOW_HIT);
	result = nat_to_backend(ctx, slot);
	if (is_drop(result) && !lb->traced)
		count_backend_drop(n->handle, result);
	return result;
}

/* This CPU's memory of the way to a client. */
static __always_inline struct nat_client_hop *nat_client_hop_of(const struct lb_ctx *lb,
								const struct nat *n)
{
	const wide64 *half = (const wide64 *)&n->tuple.daddr;
	__u64 hash = hash_step(hash_step(flow_seed, half[0]), half[1]);
	__u32 at = lb->cpu * NAT_CLIENTS + (hash >> 32) % NAT_CLIENTS;

	return bpf_map_lookup_elem(&nat_client_hops, &at);
}

/* Whether it is that of this packet's client. */
static __always_inline bool nat_client_hop_is(const struct lb_ctx *lb, const struct nat *n,
					      const struct nat_client_hop *client)
{
	return client->family == lb->pkt.flow.family &&
	       address_equal(&client->hop.saddr, &n->tuple.daddr);
}

/* And still holds. */
static __always_inline bool nat_client_hop_holds(const struct lb_ctx *lb, const struct nat *n,
						 const struct nat_client_hop *client)
{
	return next_hop_holds(lb, &client->hop, lb->rx_ifindex) && nat_client_hop_is(lb, n, client);
}

static __always_inline void count_reply(const struct lb_ctx *lb, __u32 service)
{
	__u32 at = lb->cpu * services_max + service;
	struct reply_cpu *stats = bpf_map_lookup_elem(&reply_cpus, &at);

	if (stats) {
		stats->packets++;
		stats->bytes += lb->pkt.l3_length;
	}
}

/* Sends a packet whose translation nat_find_reply() has found to the client. */
__noinline int nat_to_client(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct backend *backend;
	struct nat_client_hop *client;
	__u32 verdict;
	bool holds;

	if (!lb || !n)
		return VERDICT_PASS_NO_VIP;
	backend = backend_of(n->handle);
	client = nat_client_hop_of(lb, n);
	if (!backend || !client)
		return VERDICT_PASS_NO_VIP;
	RECORD(lb, service, backend->service);
	RECORD(lb, handle, n->handle);
	holds = nat_client_hop_holds(lb, n, client);
	if (!holds && !lb->traced) {
		client->hop.tick = 0;
		client->family = lb->pkt.flow.family;
	}
	n->way = nat_next_hop(ctx, lb, n, &client->hop, holds, &n->tuple.daddr, true);
	verdict = nat_send(ctx, slot);
	if (is_sent(verdict) && !lb->traced)
		count_reply(lb, backend->service);
	return verdict;
}

/*
 * For one that has no translation. It may be of a flow that began in the tables of before and
 * isn't copied yet: the kernel would reset it, and its client would wait for ever.
 */
static __always_inline __u32 nat_unknown(void)
{
	const struct settings *set;
	__u32 zero = 0;

	set = bpf_map_lookup_elem(&settings, &zero);
	return set && *(const volatile __u8 *)&set->moving ? VERDICT_DROP_NAT_MOVING
							   : VERDICT_PASS_NO_VIP;
}

/* For a packet to one of our translated addresses and ports. Returns the verdict. */
__noinline int nat_reply(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct backend *backend;
	struct trace *trace;
	int checked;

	if (!lb || !n)
		return VERDICT_PASS_NO_VIP;
	if (!nat_find_reply(slot))
		return nat_unknown();
	backend = backend_of(n->handle);
	if (!backend || !address_equal(&backend->addr, &lb->pkt.flow.saddr))
		return VERDICT_PASS_NO_VIP;
	if (unlikely(lb->pkt_flags & PKT_FRAGMENT) && !nat_keeps_together(lb, n->handle))
		return VERDICT_PASS_NO_VIP;
	checked = nat_check(&lb->pkt);
	if (checked != PARSE_OK)
		return checked;
	lb->jiffies = bpf_jiffies64();
	n->flags = lb->pkt.tcp_flags;
	n->quote.at = 0;
	trace = trace_of(lb);
	if (trace) {
		trace->flags |= TRACE_SNAT;
		trace->service = backend->service;
		trace->handle = n->handle;
	}
	if (!lb->traced)
		nat_backend_seen(lb, n, nat_life_of(n));
	return nat_to_client(ctx, slot);
}

#endif
