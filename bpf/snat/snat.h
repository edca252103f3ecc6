/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Forwarding by source NAT. A client's packet gets the backend as its destination and one
 * of our addresses and ports as its source; what the backend answers comes back to us and
 * is translated to what the client expects. Both are forwarded as a router would: one hop
 * less, and the way that the kernel's routes say.
 */
#ifndef TOWPATH_SNAT_H
#define TOWPATH_SNAT_H

#include "lb/counters.h"
#include "lb/transmit.h"
#include "snat/allocate.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "snat/rewrite_fragment.h"
#include "snat/rewrite_icmp.h"

/*
 * Most of what follows is in global functions, which find the packet by its row: the verifier
 * looks at each of them once, whoever calls it and whatever it then knows.
 */

/* Asks the kernel for the way of a packet between these two, into n->hop. */
__noinline int nat_ask(struct xdp_md *ctx, __u32 row, __u32 family)
{
	struct bpf_fib_lookup fib = {};
	struct nat *n = nat_of(row);
	struct next_hop *hop;
	__u32 ingress;
	int result;

	if (!n)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	hop = &n->hop;
	ingress = fib_ingress(&vlan_devices, hop->rx_ifindex, hop->rx_vlan);
	fib.ifindex = ingress;
	fib_addresses(&fib, family, &n->tuple.saddr, &n->tuple.daddr);
	result = fib_lookup(ctx, &fib, false);
	fib_take_hop(&egress_devices, hop, &fib, ingress, result);
	return result;
}

/*
 * Fills n->hop: what is `kept`, if it `holds`, or the kernel's answer, which is kept then.
 * `saddr` goes with it. Returns the verdict it leads to.
 */
static __always_inline __u32 nat_next_hop(struct xdp_md *ctx, struct work *w, struct nat *n,
					  struct next_hop *kept, bool holds,
					  const struct address *saddr)
{
	int result;

	if (likely(holds)) {
		TRACE_FLAG(w, TRACE_FIB_CACHED);
		n->hop = *kept;
	} else {
		next_hop_begin(w, &n->hop, w->rx_ifindex);
		n->hop.saddr = *saddr;
		result = nat_ask(ctx, w->row, w->pkt.flow.family);
		if (!next_hop_keep(w, kept, &n->hop, result))
			return route_verdict(result);
	}
	return next_hop_verdict(w, &n->hop);
}

/* These write the packet; 0, or -1 if the driver left no room. */
__noinline int nat_write_packet(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);

	return w && n ? translate(ctx, &w->pkt, &n->tuple, &n->hop) : -1;
}

__noinline int nat_write_error(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);

	return w && n ? translate_error(ctx, &w->pkt, &n->tuple, &n->quote, &n->hop) : -1;
}

__noinline int nat_write_fragment(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);

	return w && n ? translate_fragment(ctx, w, &n->tuple, &n->hop) : -1;
}

static __always_inline int nat_rewrite(struct xdp_md *ctx, const struct work *w,
				       const struct nat *n)
{
	if (unlikely(n->quote.at))
		return nat_write_error(ctx, w->row);
	if (unlikely(w->special & SPECIAL_FRAGMENT))
		return nat_write_fragment(ctx, w->row);
	return nat_write_packet(ctx, w->row);
}

/* Sends the packet as n says by way of n->hop, to which n->verdict leads. */
__noinline int nat_send(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);
	__u32 tx_ifindex, verdict;

	if (!w || !n)
		return VERDICT_DROP_HEADROOM;
	verdict = n->verdict;
	tx_ifindex = n->hop.tx_ifindex;
	TRACE(w, hop, n->hop);
	if (unlikely(!is_sent(verdict)))
		return verdict;
	if (!next_hop_fits(w, &n->hop, 0))
		return n->quote.at ? VERDICT_DROP_MTU : too_big(ctx, row, n->hop.mtu);
	if (unlikely(nat_rewrite(ctx, w, n)))
		return VERDICT_DROP_HEADROOM;
	return transmit(ctx, w, verdict, tx_ifindex, NULL);
}

/* What a packet must be, so that it can be translated: PARSE_OK or the verdict. */
static __always_inline int nat_check(const struct packet *pkt)
{
	if (unlikely(pkt->ttl <= 1))
		return VERDICT_DROP_TTL;
	return likely(pkt->l4_offset <= TRANSLATE_L4 - 20) ? PARSE_OK : VERDICT_PASS_PROTOCOL;
}

/* The backend that a flow of this service has, NULL if it is a new one. */
static __noinline struct backend *nat_backend(struct xdp_md *ctx, struct work *w, struct nat *n,
					      __u32 service)
{
	struct backend *backend;

	n->flags = w->pkt.tcp_flags;
	n->quote.at = 0;
	if (!nat_find(w, n))
		return NULL;
	backend = backend_of(n->handle);
	if (likely(backend && backend->service == service &&
		   !nat_begins_anew(w, n, !takes_flows(backend)))) {
		if (!w->traced)
			nat_client_seen(n);
		return backend;
	}
	if (!w->traced)
		nat_forget(w->row);
	n->search.way = NAT_WAYS;
	return NULL;
}

/*
 * Whether a fragment goes where its packet's others go, given the backend of the flow: the
 * first one says so, and later ones are lost if the flow has another by now.
 */
static __always_inline bool nat_keeps_together(const struct work *w, __u32 handle)
{
	return special_handle(w->row, handle) == handle;
}

/* Gives a new flow to a backend: PARSE_OK or the verdict. The backend is then in n->handle. */
static __noinline int nat_admit(struct work *w, struct nat *n, const struct backend *backend)
{
	n->handle = backend->handle;
	n->backend_port = backend->port ?: w->pkt.flow.dport;
	if (w->traced) {
		nat_candidate(w, n, n->search.first);
		return PARSE_OK;
	}
	if (!may_learn(w->cpu, w->jiffies, nat_learn))
		return VERDICT_DROP_NAT_RATE;
	/* What nobody has confirmed gives way only when nothing else is left. */
	if (!nat_has_place(nat_make(w->row, 0)) && !nat_has_place(nat_make(w->row, 1)))
		return VERDICT_DROP_NAT_PORTS;
	return PARSE_OK;
}

/* Sends a client's packet to the flow's backend. */
__noinline int nat_to_backend(struct xdp_md *ctx, __u32 row_at)
{
	struct work *w = work_of(row_at);
	struct nat *n = nat_of(row_at);
	const volatile struct address *source;
	struct backend *backend;
	struct backend_cpu *row;
	__u32 verdict;

	if (!w || !n)
		return VERDICT_DROP_NO_BACKEND;
	backend = backend_of(n->handle);
	row = backend_row(w->cpu, n->handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!backend || !row)
		return VERDICT_DROP_NO_BACKEND;
	TRACE(w, handle, n->handle);
	RECORD(w, service, backend->service);
	RECORD(w, handle, n->handle);
	TRACE(w, outer_daddr, backend->addr);
	source = &nat_addresses[n->search.source % (2 * NAT_SOURCES)];
	n->tuple.saddr = *(const struct address *)source;
	n->tuple.daddr = backend->addr;
	n->tuple.sport = n->search.port;
	n->tuple.dport = n->backend_port;
	TRACE_FLAG(w, TRACE_SNAT);
	TRACE(w, destination_port, n->tuple.dport);
	TRACE(w, outer_saddr, n->tuple.saddr);
	if (n->search.way < NAT_WAYS)
		TRACE(w, source_port, n->search.port);
	n->verdict = nat_next_hop(ctx, w, n, &row->hop, next_hop_holds(w, &row->hop, w->rx_ifindex),
				  &n->tuple.saddr);
	verdict = nat_send(ctx, row_at);
	if (is_sent(verdict))
		count_sent(w, row);
	return verdict;
}

/*
 * Sends a client's later fragment after the first one. Without a translation it is lost: the
 * first one has met no backend, or one that no flow of the client's has any more.
 */
__noinline int nat_follow(struct xdp_md *ctx, __u32 row, __u32 service)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);
	int result;

	if (!w || !n)
		return VERDICT_DROP_FRAGMENT;
	n->fresh = 0;
	result = nat_check(&w->pkt);
	if (result != PARSE_OK)
		return result;
	if (!nat_choices(w) || !nat_backend(ctx, w, n, service) ||
	    !nat_keeps_together(w, n->handle))
		return VERDICT_DROP_FRAGMENT;
	TRACE_FLAG(w, TRACE_FLOW_HIT);
	result = nat_to_backend(ctx, row);
	if (is_drop(result) && !w->traced)
		count_backend_drop(n->handle, result);
	return result;
}

/* This CPU's memory of the way to a client. */
static __always_inline struct nat_way *nat_way_to(const struct work *w, const struct nat *n)
{
	const __u64 *half = (const __u64 *)&n->tuple.daddr;
	__u64 hash = hash_step(hash_step(flow_seed, half[0]), half[1]);
	__u32 at = w->cpu * NAT_CLIENTS + (hash >> 32) % NAT_CLIENTS;

	return bpf_map_lookup_elem(&nat_ways, &at);
}

static __always_inline void count_reply(const struct work *w, __u32 service)
{
	__u32 at = w->cpu * services_max + service;
	struct reply_cpu *row = bpf_map_lookup_elem(&reply_cpus, &at);

	if (row) {
		row->packets++;
		row->bytes += w->pkt.l3_length;
	}
}

/* Sends a packet whose translation nat_find_reply() has found to the client. */
__noinline int nat_to_client(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);
	struct backend *backend;
	struct nat_way *way;
	__u32 verdict;
	bool holds;

	if (!w || !n)
		return VERDICT_PASS_NO_VIP;
	backend = backend_of(n->handle);
	way = nat_way_to(w, n);
	if (!backend || !way)
		return VERDICT_PASS_NO_VIP;
	RECORD(w, service, backend->service);
	RECORD(w, handle, n->handle);
	holds = next_hop_holds(w, &way->hop, w->rx_ifindex) && way->family == w->pkt.flow.family &&
		address_equal(&way->hop.saddr, &n->tuple.daddr);
	if (!holds && !w->traced) {
		way->hop.tick = 0;
		way->family = w->pkt.flow.family;
	}
	n->verdict = nat_next_hop(ctx, w, n, &way->hop, holds, &n->tuple.daddr);
	verdict = nat_send(ctx, row);
	if (is_sent(verdict) && !w->traced)
		count_reply(w, backend->service);
	return verdict;
}

/* For a packet to one of our translated addresses and ports. Returns the verdict. */
__noinline int nat_reply(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);
	struct backend *backend;
	int checked;

	if (!w || !n || !nat_find_reply(row))
		return VERDICT_PASS_NO_VIP;
	backend = backend_of(n->handle);
	if (!backend || !address_equal(&backend->addr, &w->pkt.flow.saddr))
		return VERDICT_PASS_NO_VIP;
	if (unlikely(w->special & SPECIAL_FRAGMENT) && !nat_keeps_together(w, n->handle))
		return VERDICT_PASS_NO_VIP;
	checked = nat_check(&w->pkt);
	if (checked != PARSE_OK)
		return checked;
	w->jiffies = bpf_jiffies64();
	n->flags = w->pkt.tcp_flags;
	n->quote.at = 0;
	TRACE_FLAG(w, TRACE_SNAT);
	TRACE(w, service, backend->service);
	TRACE(w, handle, n->handle);
	if (!w->traced)
		nat_backend_seen(w, n);
	return nat_to_client(ctx, row);
}

#endif
