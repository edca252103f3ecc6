/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer: parse -> service -> source -> backend -> next hop -> encapsulate
 * or put into a new frame -> transmit. A packet passes to the kernel as it came until
 * the moment it is changed; from there it is sent, handed to the kernel or dropped with a
 * counted reason.
 */
#include <linux/pkt_cls.h>

#include "health/egress.h"
#include "lb/affinity.h"
#include "lb/allow_from.h"
#include "lb/counters.h"
#include "lb/flow_table.h"
#include "lb/l2.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "lb/trace.h"
#include "lb/transmit.h"
#include "lb/tunnel.h"
#include "net/encap.h"
#include "net/fib.h"
#include "net/parse.h"
#include "snat/icmp.h"
#include "snat/snat.h"

/* For a packet that belongs to no flow that is known. */
static __always_inline struct backend *new_backend(struct lb_ctx *lb, const struct service *service,
						   __u32 index)
{
	if (likely(!service->affinity))
		return hash_backend(lb, service, lb->hash >> 32);
	return backend_of(affinity_backend(lb->slot, index));
}

/*
 * The flow's backend by the flow table, else by Maglev, which the table then learns. A port
 * that is used again by its client, or a SYN that nobody has answered, is no reason to stay
 * with a backend that takes no new flows. Datagrams have no SYN: what comes after a long pause
 * is a new flow.
 */
static __always_inline struct backend *
choose_backend(struct lb_ctx *lb, const struct service *service, __u32 index, bool *fresh)
{
	struct flow_id id = {
		.key = &lb->pkt.flow,
		.service = index,
		.tcp_flags = lb->pkt.tcp_flags,
	};
	struct flow_place place;
	struct backend *backend;

	if (service->flags & SERVICE_NO_FLOW_TABLE) {
		*fresh = true;
		return new_backend(lb, service, index);
	}

	place = flow_place(lb->hash, lb->jiffies);
	backend = backend_of(flow_lookup(&place, &id));
	if (likely(backend) && likely(!flow_has_ended(&place, &id, service->flow_timeout)) &&
	    (likely(!flow_begins_anew(&place, &id)) || takes_flows(backend))) {
		if (likely(!(lb->pkt_flags & PKT_NO_LEARN)))
			flow_note(&place, &id);
		TRACE_FLAG(lb, TRACE_FLOW_HIT);
		return backend;
	}
	*fresh = !(id.tcp_flags & TCP_RST);
	backend = new_backend(lb, service, index);
	if (backend && may_be_learnt(lb) && flow_may_learn(lb->cpu, lb->jiffies))
		flow_learn_as(&place, &id, backend->handle);
	return backend;
}

/*
 * Points `outer` at the way to its backend: the one found earlier in this jiffy,
 * or else the kernel's answer, put in `fresh`. `rx_ifindex`: with HOP_L2 if the packet is
 * to go to that very host. Returns how packets leave by it (enum way_out), or the verdict
 * where there is no way.
 */
static __always_inline __u32 backend_next_hop(struct xdp_md *ctx, struct lb_ctx *lb,
					      struct backend_cpu *stats, struct outer *outer,
					      struct next_hop *fresh, __u32 rx_ifindex)
{
	int result;

	if (likely(next_hop_holds(lb, &stats->hop, rx_ifindex))) {
		TRACE_FLAG(lb, TRACE_FIB_CACHED);
		outer->hop = &stats->hop;
	} else {
		next_hop_begin(lb, fresh, rx_ifindex);
		result = route_ask(ctx, outer->daddr, *outer->family, fresh,
				   tunnel_flow(lb->hash >> 32, lb->pkt.tos));
		outer->hop = fresh;
		if (!next_hop_keep(lb, &stats->hop, fresh, result))
			return route_verdict(result);
	}
	return outer->hop->way;
}

static __always_inline __u32 send_tunnel(struct xdp_md *ctx, struct lb_ctx *lb,
					 const struct backend *backend, struct backend_cpu *stats)
{
	struct outer outer = {
		.daddr = &backend->addr,
		.family = &backend->family,
		.hash = lb->hash >> 32,
		.length = outer_length(backend->family),
	};
	struct next_hop fresh;
	__u32 way = backend_next_hop(ctx, lb, stats, &outer, &fresh, lb->rx_ifindex), tx_ifindex,
	      verdict;

	TRACE(lb, hop, *outer.hop);
	if (unlikely(!is_sent(way)))
		return way;
	if (!next_hop_fits(lb, outer.hop, outer.length))
		return too_big(ctx, lb->slot, outer.hop->mtu - outer.length);
	tunnel_source(&outer);
	TRACE(lb, outer_saddr, outer.saddr);
	tx_ifindex = outer.hop->tx_ifindex;
	outer.vlan = outer.hop->tx_vlan;

	if (unlikely(xdp_encap(ctx, &lb->pkt, &outer)))
		return VERDICT_DROP_HEADROOM;
	verdict = transmit(ctx, lb, way, tx_ifindex, 0);
	if (likely(is_sent(verdict)))
		count_sent(lb, stats);
	return verdict;
}

/*
 * The same without a tunnel, to a backend on the link. Global, so that the verifier looks
 * at it once and packets in tunnels pay one comparison for it.
 */
__noinline int send_l2(struct xdp_md *ctx, __u32 slot, __u32 handle)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct backend *backend = backend_of(handle);
	struct outer outer = {};
	__u32 way, verdict, tx_ifindex;
	struct backend_cpu *stats;
	struct next_hop fresh;

	if (!lb || !backend)
		return VERDICT_DROP_NO_BACKEND;
	stats = backend_stats(lb->cpu, handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats)
		return VERDICT_DROP_NO_BACKEND;
	outer.daddr = &backend->addr;
	outer.family = &backend->family;
	way = backend_next_hop(ctx, lb, stats, &outer, &fresh, lb->rx_ifindex | HOP_L2);
	TRACE(lb, hop, *outer.hop);
	if (!is_sent(way))
		return way;
	if (!next_hop_fits(lb, outer.hop, 0))
		return too_big(ctx, slot, outer.hop->mtu);
	tx_ifindex = outer.hop->tx_ifindex;

	if (relink(ctx, &lb->pkt, outer.hop))
		return VERDICT_DROP_HEADROOM;
	verdict = transmit(ctx, lb, way, tx_ifindex, handle);
	if (is_sent(verdict))
		count_sent(lb, stats);
	return verdict;
}

/* In the way that the service has. */
static __always_inline __u32 forward(struct xdp_md *ctx, struct lb_ctx *lb,
				     const struct service *service, const struct backend *backend)
{
	struct backend_cpu *stats;

	if (unlikely(service->flags & SERVICE_L2))
		return send_l2(ctx, lb->slot, backend->handle);
	stats = backend_stats(lb->cpu, backend->handle & ((1 << HANDLE_INDEX_BITS) - 1));
	return stats ? send_tunnel(ctx, lb, backend, stats) : VERDICT_DROP_NO_BACKEND;
}

/*
 * The same for a service that is forwarded by source NAT. Returns the verdict; n->fresh
 * says whether the flow is a new one.
 */
__noinline int balance_snat(struct xdp_md *ctx, __u32 slot, __u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct backend *backend;
	int result;

	if (!service || !lb || !n)
		return VERDICT_DROP_NO_BACKEND;
	n->fresh = 0;
	/* None: the service is left from an agent that was configured otherwise. */
	result = nat_choices(lb) ? nat_check(&lb->pkt) : VERDICT_DROP_NAT_PORTS;
	if (result != PARSE_OK)
		return result;
	backend = nat_backend(ctx, lb, n, id);
	if (backend) {
		TRACE_FLAG(lb, TRACE_FLOW_HIT);
	} else if (lb->pkt.tcp_flags & TCP_RST) {
		/* It could only be sent by a binding, which it would be the first and last to need. */
		return VERDICT_DROP_NO_FLOW;
	} else if (!address_is_host(&lb->pkt.flow.saddr, lb->pkt.flow.family)) {
		return VERDICT_DROP_MARTIAN;
	} else {
		n->fresh = 1;
		backend = new_backend(lb, service, id);
		if (!backend)
			return VERDICT_DROP_NO_BACKEND;
		result = nat_admit(lb, n, backend);
		TRACE(lb, handle, n->handle);
		if (!lb->traced)
			count_backend_flow(lb->cpu, n->handle);
	}
	if (unlikely(lb->pkt_flags & PKT_FRAG_FIRST))
		slow_path_handle(slot, n->handle);
	if (result == PARSE_OK)
		result = nat_to_backend(ctx, slot);
	if (unlikely(is_drop(result)) && !lb->traced)
		count_backend_drop(n->handle, result);
	return result;
}

static __always_inline __u32 balance_allowed(struct xdp_md *ctx, struct lb_ctx *lb,
					     const struct service *service, __u32 id, bool *fresh)
{
	struct backend *backend;
	__u32 verdict;

	lb->jiffies = bpf_jiffies64();
	lb->hash = hash_flow(&lb->pkt.flow, hash_seed);
	TRACE(lb, hash, lb->hash >> 32);
	if (unlikely(service->flags & SERVICE_SNAT)) {
		struct nat *n = nat_of(lb->slot);

		verdict = unlikely(lb->pkt_flags & PKT_FRAG_LATER)
				  ? nat_follow(ctx, lb->slot, id)
				  : balance_snat(ctx, lb->slot, id);
		*fresh = n && n->fresh;
		return verdict;
	}
	backend = choose_backend(lb, service, id, fresh);
	if (unlikely(lb->pkt_flags)) {
		if (lb->pkt_flags & PKT_NO_LEARN)
			*fresh = false;
		backend = backend_of(slow_path_handle(lb->slot, backend ? backend->handle : 0));
		if (!backend)
			return slow_path_no_backend(lb);
	}
	if (unlikely(!backend))
		return VERDICT_DROP_NO_BACKEND;
	note_backend(lb, backend);
	if (*fresh && !lb->traced)
		count_backend_flow(lb->cpu, backend->handle);
	verdict = forward(ctx, lb, service, backend);
	if (unlikely(is_drop(verdict)) && !lb->traced)
		count_backend_drop(backend->handle, verdict);
	return verdict;
}

/* For a packet whose destination is a VIP. Returns the verdict. */
static __always_inline __u32 balance(struct xdp_md *ctx, struct lb_ctx *lb, __u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	bool fresh = false;
	__u32 verdict, set;

	if (!service)
		return VERDICT_PASS_NO_VIP;
	/* Errors about a flow that is translated have been looked for before. */
	if (unlikely(lb->pkt_flags & (PKT_ICMP_ERROR | PKT_AUTHENTICATED)) &&
	    service->flags & SERVICE_SNAT)
		return slow_path_untranslated(lb);
	set = *(const volatile __u32 *)&service->sources;
	if (unlikely(set) && !source_allowed(lb->slot, set))
		verdict = VERDICT_DROP_SOURCE;
	else
		verdict = balance_allowed(ctx, lb, service, id, &fresh);
	if (!lb->traced)
		count_service(lb, id, fresh, verdict);
	return verdict;
}

/* For a packet that is neither TCP nor UDP: an ICMP error may be about one that was translated. */
static __noinline __u32 balance_error(struct xdp_md *ctx, struct lb_ctx *lb)
{
	struct flow_key flow = lb->pkt.flow;
	struct nat *n = nat_of(lb->slot);
	bool v4 = flow.family == FAMILY_V4;
	__u32 verdict;

	if (!n || flow.protocol != (v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return VERDICT_PASS_PROTOCOL;
	verdict = nat_error(ctx, lb->slot);
	if (verdict == VERDICT_PASS_PROTOCOL)
		lb->pkt.flow = flow;
	else if (n->service && !lb->traced)
		count_service(lb, n->service, false, verdict);
	return verdict;
}

/* For a packet of the slow path whose flow is of no service: a fragment may be an answer's. */
static __noinline __u32 unserved(struct xdp_md *ctx, struct lb_ctx *lb)
{
	__u32 verdict = VERDICT_PASS_NO_VIP;

	if (lb->pkt_flags & PKT_FRAGMENT && !(lb->pkt_flags & PKT_AUTHENTICATED) &&
	    nat_may_be(&lb->pkt.flow))
		verdict = nat_reply(ctx, lb->slot);
	if (verdict != VERDICT_PASS_NO_VIP)
		return verdict;
	return slow_path_unserved(lb->slot, nat_may_be_source(&lb->pkt.flow.daddr));
}

/* What goes back where it came from, by the way that the device allows. */
static __always_inline int xdp_action_back(const struct lb_ctx *lb)
{
	if (likely(!(lb->pkt_flags & (PKT_REDIRECTED | PKT_PASSED))))
		return XDP_TX;
	return lb->pkt_flags & PKT_REDIRECTED ? XDP_REDIRECT : XDP_PASS;
}

static __always_inline int xdp_action(const struct lb_ctx *lb, __u32 verdict)
{
	if (verdict == VERDICT_TX)
		return xdp_action_back(lb);
	barrier_var(verdict); /* or clang makes one jump of all these, which is longer */
	if (verdict == VERDICT_REDIRECT)
		return XDP_REDIRECT;
	if (verdict <= VERDICT_PASS_QINQ)
		return XDP_PASS;
	if (verdict == VERDICT_TX_TOO_BIG || verdict == VERDICT_TX_ECHO)
		return xdp_action_back(lb);
	return XDP_DROP;
}

/* All of a packet's way, once it has a context. Returns the verdict. */
static __always_inline __u32 handle(struct xdp_md *ctx, struct lb_ctx *lb)
{
	__u32 verdict, id;
	int parsed;

	RECORD(lb, service, 0);
	RECORD(lb, handle, 0);
	parsed = parse_packet(ctx, &lb->pkt);
	barrier();
	if (xdp_fragments && unlikely(parsed != PARSE_OK))
		parsed = slow_path_pull(ctx, lb->slot, parsed);
	if (unlikely(parsed != PARSE_OK)) {
		if (nat_ports && parsed == VERDICT_PASS_PROTOCOL)
			parsed = balance_error(ctx, lb);
		parsed = slow_path_parse(ctx, lb->slot, parsed);
	}
	if (unlikely(parsed != PARSE_OK)) {
		verdict = parsed;
	} else {
		verdict = VERDICT_PASS_NO_VIP;
		id = service_lookup(lb);
		if (id) {
			note_service(lb, id);
			verdict = balance(ctx, lb, id);
		} else if (unlikely(lb->pkt_flags & ~PKT_NO_LEARN)) {
			verdict = unserved(ctx, lb);
		} else if (unlikely(nat_may_be(&lb->pkt.flow))) {
			verdict = nat_reply(ctx, lb->slot);
		}
	}

	TRACE(lb, verdict, verdict);
	if (!lb->traced)
		count_verdict(lb->cpu, verdict);
	return verdict;
}

SEC("xdp")
int towpath_lb(struct xdp_md *ctx)
{
	struct lb_ctx *lb = lb_ctx_begin(ctx);

	return lb ? xdp_action(lb, handle(ctx, lb)) : XDP_PASS;
}

/*
 * On the same device, for packets that XDP encapsulated and could not send: the
 * kernel resolves the next hop and sends them when it answers, or sends them as they are
 * where there is nothing to resolve. No forwarding setting or source check of the kernel
 * stands in their way.
 */
SEC("tc")
int towpath_handoff(struct __sk_buff *skb)
{
	struct punt *mark = (void *)(long)skb->data_meta;
	struct bpf_redir_neigh next_hop = {};

	if ((void *)(mark + 1) > (void *)(long)skb->data)
		return TC_ACT_UNSPEC;
	if (mark->cookie != trace_cookie || !trace_cookie)
		return TC_ACT_UNSPEC;
	if (mark->family == PUNT_FRAME)
		return bpf_redirect(mark->ifindex, 0);
	if (!mark->family)
		return bpf_redirect_neigh(mark->ifindex, NULL, 0, 0);
	next_hop.nh_family = mark->family;
	if (mark->family == FAMILY_V4)
		next_hop.ipv4_nh = mark->next_hop.word[3];
	else
		__builtin_memcpy(next_hop.ipv6_nh, &mark->next_hop, 16);
	return bpf_redirect_neigh(mark->ifindex, &next_hop, sizeof(next_hop), 0);
}

/* On the loopback device, for the packets of this node's own health checks. */
SEC("tc")
int towpath_health(struct __sk_buff *skb)
{
	if (likely(skb->mark != health_mark) || !health_mark)
		return TC_ACT_UNSPEC;
	return health_send(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
