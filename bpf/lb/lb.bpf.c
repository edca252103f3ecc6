/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer: parse -> unwrap -> service -> source -> backend -> next hop -> encapsulate
 * or put into a new frame -> transmit. A packet passes to the kernel as it came until
 * the moment it is changed; from there it is sent, handed to the kernel or dropped with a
 * counted reason.
 */
#include <linux/pkt_cls.h>

#include "health/egress.h"
#include "lb/choose.h"
#include "lb/counters.h"
#include "lb/l2.h"
#include "lb/local.h"
#include "lb/service.h"
#include "lb/slow_path.h"
#include "lb/sources.h"
#include "lb/trace.h"
#include "lb/tracked.h"
#include "lb/transmit.h"
#include "lb/tunnel.h"
#include "lb/unwrap.h"
#include "net/encap.h"
#include "net/fib.h"
#include "net/parse.h"
#include "snat/fast.h"
#include "snat/icmp.h"
#include "snat/snat.h"

/*
 * Points `outer` at the way to its backend: the one found earlier in this jiffy,
 * or else the kernel's answer, put in lb->fresh. `rx_ifindex`: with HOP_L2 if the packet is
 * to go to that very host. Returns how packets leave by it (enum way_out), or the verdict
 * where there is no way.
 */
static __always_inline __u32 backend_next_hop(struct xdp_md *ctx, struct lb_ctx *lb,
					      struct backend_cpu *stats, struct outer *outer,
					      __u32 rx_ifindex)
{
	int result;

	if (likely(next_hop_holds(lb, &stats->hop, rx_ifindex))) {
		TRACE_FLAG(lb, TRACE_FIB_CACHED);
		outer->hop = &stats->hop;
	} else {
		next_hop_begin(lb, &lb->fresh, rx_ifindex);
		result = route_ask(ctx, outer->daddr, route_to(*outer->family, outer->encap),
				   &lb->fresh, tunnel_flow(lb->hash >> 32, lb->pkt.tos));
		outer->hop = &lb->fresh;
		if (!next_hop_keep(lb, &stats->hop, &lb->fresh, result))
			return route_verdict(result);
	}
	return outer->hop->way;
}

/* `outer` has its destination and kind. */
static __always_inline __u32 send_outer(struct xdp_md *ctx, struct lb_ctx *lb,
					struct backend_cpu *stats, struct outer *to)
{
	struct outer outer = *to;
	__u32 way, tx_ifindex, verdict;

	outer.hash = lb->hash >> 32;
	outer.length = outer_length(*outer.family) + outer.between;
	way = backend_next_hop(ctx, lb, stats, &outer, lb->rx_ifindex);
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

static __always_inline __u32 send_tunnel(struct xdp_md *ctx, struct lb_ctx *lb,
					 const struct backend *backend, struct backend_cpu *stats)
{
	struct outer outer = { .daddr = &backend->addr, .family = &backend->family };

	return send_outer(ctx, lb, stats, &outer);
}

/* The same by another tunnel than IPIP. `encap`: the service's. */
__noinline int send_wrapped(struct xdp_md *ctx, __u32 slot, __u32 handle, __u32 encap)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct backend *backend = backend_of(handle);
	struct outer outer = {};
	struct backend_cpu *stats;

	if (!lb || !backend)
		return VERDICT_DROP_NO_BACKEND;
	stats = backend_stats(lb->cpu, handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats)
		return VERDICT_DROP_NO_BACKEND;
	outer.daddr = &backend->addr;
	outer.family = &backend->family;
	outer.wraps = true;
	outer.encap = encap;
	outer.between = encap_between(encap);
	return send_outer(ctx, lb, stats, &outer);
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

	if (!lb || !backend)
		return VERDICT_DROP_NO_BACKEND;
	stats = backend_stats(lb->cpu, handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats)
		return VERDICT_DROP_NO_BACKEND;
	outer.daddr = &backend->addr;
	outer.family = &backend->family;
	way = backend_next_hop(ctx, lb, stats, &outer, lb->rx_ifindex | HOP_L2);
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

	if (unlikely(service->flags & (SERVICE_L2 | SERVICE_LOCAL | SERVICE_ENCAP))) {
		if (service->flags & SERVICE_LOCAL && is_local(backend->handle))
			return local_pass(lb, backend->handle);
		if (service->flags & SERVICE_L2)
			return send_l2(ctx, lb->slot, backend->handle);
		if (service->flags & SERVICE_ENCAP)
			return send_wrapped(ctx, lb->slot, backend->handle, service->encap);
	}
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
	if (unlikely(service->flags & SERVICE_LOCAL)) {
		result = local_follow(ctx, slot, id);
		if (result != LOCAL_NOT)
			return result;
	}
	/* None: the service is left from an agent that was configured otherwise. */
	result = nat_choices(lb) ? nat_check(&lb->pkt) : VERDICT_DROP_NAT_PORTS;
	if (result != PARSE_OK)
		return result;
	backend = nat_backend(ctx, lb, n, id);
	if (backend) {
		TRACE_FLAG(lb, TRACE_FLOW_HIT);
	} else if (tracks && tracked_has(slot)) {
		return tracked_pass(slot);
	} else if (lb->pkt.tcp_flags & TCP_RST) {
		/* It could only be sent by a binding, which it would be the first and last to need. */
		return VERDICT_DROP_NO_FLOW;
	} else if (!address_is_host(&lb->pkt.flow.saddr, lb->pkt.flow.family)) {
		return VERDICT_DROP_MARTIAN;
	} else {
		n->fresh = 1;
		backend = NULL;
		if (unlikely(service->flags & SERVICE_QUIC))
			backend = backend_of(quic_backend(ctx, slot, id));
		if (!backend)
			backend = new_backend(lb, service, id);
		if (!backend)
			return VERDICT_DROP_NO_BACKEND;
		if (unlikely(service->flags & SERVICE_LOCAL) && is_local(backend->handle))
			return local_begin(ctx, slot, id, backend->handle);
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
	backend = choose_backend(ctx, lb, service, id, fresh);
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

/* For one of a service that is translated, which isn't. Returns the verdict. */
static __noinline __u32 balance_untranslated(struct xdp_md *ctx, struct lb_ctx *lb,
					     const struct service *service, __u32 id)
{
	__u32 verdict = LOCAL_NOT;

	if (lb->pkt_flags & PKT_ICMP_ERROR && service->flags & SERVICE_LOCAL)
		verdict = local_error(ctx, lb->slot, id);
	if (verdict == LOCAL_NOT)
		return slow_path_untranslated(lb);
	if (!lb->traced)
		count_service(lb, id, false, verdict);
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
		return balance_untranslated(ctx, lb, service, id);
	set = *(const volatile __u32 *)&service->sources;
	if (unlikely(set) && !source_allowed(&lb->pkt.flow, set))
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
static __always_inline __u32 unserved(struct xdp_md *ctx, struct lb_ctx *lb)
{
	__u32 verdict = VERDICT_PASS_NO_VIP;

	if (lb->pkt_flags & PKT_FRAGMENT && !(lb->pkt_flags & PKT_AUTHENTICATED) &&
	    nat_may_be(&lb->pkt.flow))
		verdict = nat_reply(ctx, lb->slot);
	if (verdict != VERDICT_PASS_NO_VIP)
		return verdict;
	return slow_path_unserved(lb->slot, nat_may_be_source(&lb->pkt.flow.daddr));
}

/*
 * For a packet that has a flow. `exact`: the service of its very address and port, 0 if there is
 * none. Returns the verdict.
 */
static __always_inline __u32 handle_flow(struct xdp_md *ctx, struct lb_ctx *lb, __u32 exact)
{
	__u32 id = service_lookup(lb, exact);

	if (id) {
		note_service(lb, id);
		return balance(ctx, lb, id);
	}
	if (unlikely(lb->pkt_flags & ~PKT_NO_LEARN))
		return unserved(ctx, lb);
	return unlikely(nat_may_be(&lb->pkt.flow)) ? nat_reply(ctx, lb->slot) : VERDICT_PASS_NO_VIP;
}

/* What it comes to is counted, and told. */
static __always_inline __u32 handled(struct lb_ctx *lb, __u32 verdict)
{
	if (likely(!lb->traced))
		count_verdict(lb->cpu, verdict);
	else
		TRACE(lb, verdict, verdict);
	return verdict;
}

/* Gives a packet a flow: PARSE_OK, or its verdict. */
static __always_inline int handle_parse(struct xdp_md *ctx, struct lb_ctx *lb)
{
	int parsed;

	RECORD(lb, service, 0);
	RECORD(lb, handle, 0);
	parsed = parse_packet(ctx, &lb->pkt);
	barrier();
	if (xdp_fragments && unlikely(parsed != PARSE_OK))
		parsed = slow_path_pull(ctx, lb->slot, parsed);
	if (unwraps && unlikely(may_be_wrapped(lb, parsed)))
		parsed = unwrap_parse(ctx, lb->slot, parsed);
	if (unlikely(parsed != PARSE_OK)) {
		if (nat_ports && parsed == VERDICT_PASS_PROTOCOL)
			parsed = balance_error(ctx, lb);
		parsed = slow_path_parse(ctx, lb->slot, parsed);
	}
	return parsed;
}

/* For any packet: its action, or FAST_FLOW once its context, by this slot, has a flow. */
static __noinline int general_parse(struct xdp_md *ctx, __u32 *slot)
{
	struct lb_ctx *lb = lb_ctx_begin(ctx);
	int parsed;

	if (!lb)
		return XDP_PASS;
	parsed = handle_parse(ctx, lb);
	if (unlikely(parsed != PARSE_OK))
		return xdp_action(lb, handled(lb, parsed));
	lb->exact = service_exact(&lb->pkt.flow);
	*slot = lb->slot;
	return FAST_FLOW;
}

/*
 * What the context of a packet is to have that the fast way has left alone; returns the service of its
 * very address and port. The frame is read once more: to keep what has been read would cost those
 * that stay on the fast way.
 */
static __always_inline __u32 general_take(struct xdp_md *ctx, struct lb_ctx *lb, __u32 slot,
					  __u32 flow)
{
	lb_ctx_fill(lb, slot, slot / 2, ctx->ingress_ifindex, 0);
	if (flow & FLOW_PLAIN_V4)
		take_plain(cursor_of(ctx), &lb->pkt, true);
	else
		take_plain(cursor_of(ctx), &lb->pkt, false);
	barrier();
	return flow / FLOW_SERVICE;
}

/* For a packet that has a flow: its action. */
__noinline int general_flow(struct xdp_md *ctx, __u32 slot, __u32 flow)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	__u32 exact;

	if (!lb)
		return XDP_PASS;
	exact = flow == FLOW_PARSED ? lb->exact : general_take(ctx, lb, slot, flow);
	return xdp_action(lb, handled(lb, handle_flow(ctx, lb, exact)));
}

SEC("xdp")
int towpath_lb(struct xdp_md *ctx)
{
	int action = fast_way(ctx);
	__u32 slot;

	if (likely(action >= 0))
		return action;
	slot = bpf_get_smp_processor_id() * 2; /* of packets that are not traced */
	if (action == FAST_UNPARSED)
		action = general_parse(ctx, &slot);
	return action >= 0 ? action : general_flow(ctx, slot, FAST_FLOW - action);
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
	if (mark->family == PUNT_LOCAL)
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

/* On the loopback device, for the packets of health checks from this node. */
SEC("tc")
int towpath_health(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	if (health_mark && (unlikely(mark == health_mark) || is_foreign_mark(mark)))
		return health_send(skb);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
