/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fast way of packets of IPv4 that are translated: a client's whose translation is at its first
 * candidate, or is to be there, and a backend's. What snat/fast.h says of the fast way holds here.
 */
#ifndef TOWPATH_SNAT_FAST_NAT_H
#define TOWPATH_SNAT_FAST_NAT_H

#include "lb/fast_leave.h"
#include "snat/snat.h"

/* False: see take_plain(). */
static __always_inline bool fast_nat_context(struct xdp_md *ctx, struct lb_ctx *lb, struct nat *n)
{
	if (!take_plain(cursor_of(ctx), &lb->pkt, true))
		return false;
	fast_place(ctx, lb);
	lb->jiffies = bpf_jiffies64();
	n->flags = lb->pkt.tcp_flags;
	return true;
}

/* Whether the packet may go there. */
static __always_inline bool fast_goes(struct xdp_md *ctx, const struct lb_ctx *lb,
				      const struct next_hop *hop)
{
	return fast_leaves(ctx, lb, hop, lb->rx_ifindex) && next_hop_fits(lb, hop, 0);
}

/* Translates the packet and puts it in its frame. False: it can't be, and is as it was. */
static __always_inline bool fast_translate(struct xdp_md *ctx, const struct lb_ctx *lb,
					   const struct nat *n, const struct next_hop *hop)
{
	struct cursor c = cursor_of(ctx);
	struct iphdr *ip = c.pos + sizeof(struct ethhdr);

	if (c.pos + plain_headers(true) > c.end || !nat_lives_on(ip->ttl))
		return false;
	write_ethernet(c.pos, hop, bpf_htons(ETH_P_IP));
	translate_transport(ip + 1, &n->tuple, lb->pkt.flow.protocol == IPPROTO_TCP,
			    translate_ipv4(ip, &n->tuple));
	return true;
}

/* For a client's packet that begins nothing. `protocol` is a constant. */
static __always_inline int fast_nat_known(struct xdp_md *ctx, struct lb_ctx *lb, __u32 index,
					  const __u8 protocol)
{
	struct nat n = { .flags = protocol == IPPROTO_TCP ? lb->pkt.tcp_flags : 0 };
	struct backend *backend;
	struct backend_cpu *stats;
	struct nat_head *head;
	struct nat_life *life;
	__u32 at;

	lb->pkt.flow.protocol = protocol;
	n.timeout = protocol == IPPROTO_UDP ? nat_timeout_of(index) : 0;
	if (!nat_begin(lb, &n))
		return FAST_DOUBT;
	nat_candidate(lb, &n, n.search.first);
	at = n.search.set;
	head = bpf_map_lookup_elem(&nat_heads, &at);
	life = head ? nat_look(lb, &n, head) : NULL;
	if (!life)
		return protocol == IPPROTO_UDP ? FAST_BEGINS : FAST_DOUBT;
	backend = backend_of(n.handle);
	if (!backend || !nat_still(lb, &n, life, backend, index))
		return FAST_DOUBT;
	fast_place(ctx, lb);
	stats = backend_stats(lb->cpu, n.handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats || !fast_goes(ctx, lb, &stats->hop))
		return FAST_DOUBT;
	nat_towards(&n, backend, true);
	if (!fast_translate(ctx, lb, &n, &stats->hop))
		return FAST_DOUBT;
	nat_client_seen(lb, &n, life);
	count_sent(lb, stats);
	count_service(lb, index, false, VERDICT_TX);
	return fast_sent(lb, &stats->hop);
}

/*
 * For a packet that begins a flow: binds it to the first candidate, if no flow that has this as its
 * first one is anywhere else, and the set has a free way. `left`: what fast_v4() has said of it, which is
 * returned if this leaves it as well.
 */
__noinline int fast_nat_new(struct xdp_md *ctx, int left)
{
	__u32 index = (__u32)(FAST_FLOW - left) / FLOW_SERVICE;
	const struct service *service = bpf_map_lookup_elem(&services, &index);
	struct lb_ctx lb = {};
	struct nat n = {};
	struct flow_cpu *learnt;
	struct backend *backend;
	struct backend_cpu *stats;
	struct nat_head *head;
	struct nat_lock *lock;
	struct nat_set *set;
	bool bound;
	__u32 at;

	if (!service || (tracks && tracking_now() != TRACKING_NONE) || service->affinity ||
	    service->flags & (FAST_NEVER_NEW | SERVICE_QUIC) || !fast_nat_context(ctx, &lb, &n))
		return left;
	lb.hash = hash_flow(&lb.pkt.flow, hash_seed);
	n.timeout = lb.pkt.flow.protocol == IPPROTO_UDP ? nat_timeout_of(index) : 0;
	if (!nat_begin(&lb, &n))
		return left;
	nat_candidate(&lb, &n, n.search.first);
	at = n.search.set;
	head = bpf_map_lookup_elem(&nat_heads, &at);
	if (!head || *(volatile __u8 *)&head->reach ||
	    !address_is_host(&lb.pkt.flow.saddr, FAMILY_V4))
		return left;
	backend = hash_backend(&lb, service, lb.hash >> 32);
	if (!backend)
		return left;
	stats = backend_stats(lb.cpu, backend->handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats || !fast_goes(ctx, &lb, &stats->hop) || !nat_lives_on(lb.pkt.ttl))
		return left;
	nat_give(&lb, &n, backend);
	nat_expect_replies(&lb, &n, backend);
	set = bpf_map_lookup_elem(&nat_flows, &at);
	lock = bpf_map_lookup_elem(&nat_locks, &at);
	learnt = learnt_now(lb.cpu, lb.jiffies);
	if (!set || !lock || !learnt || learnt->learnt >= nat_learn)
		return left;
	bpf_spin_lock(&lock->lock);
	bound = nat_bind_free(head, set, nat_whole_ways(head->forward, head->reply), &lb.pkt.flow,
			      &n);
	bpf_spin_unlock(&lock->lock);
	if (!bound)
		return left;
	learnt->learnt++;
	nat_towards(&n, backend, true);
	if (!fast_translate(ctx, &lb, &n, &stats->hop))
		return left;
	count_backend_flow(lb.cpu, n.handle);
	count_sent(&lb, stats);
	count_service(&lb, index, true, VERDICT_TX);
	return fast_sent(&lb, &stats->hop);
}

/* For a packet to one of our translated addresses and ports. */
__noinline int fast_nat_reply(struct xdp_md *ctx)
{
	struct lb_ctx lb = {};
	struct nat n = {};
	struct nat_client_hop *client;
	struct backend *backend;
	struct nat_head *head;

	if (!fast_nat_context(ctx, &lb, &n))
		return FAST_DOUBT;
	head = nat_look_reply(&lb, &n);
	if (!head)
		return FAST_DOUBT;
	backend = backend_of(n.handle);
	client = nat_client_hop_of(&lb, &n);
	if (!backend || !client || !address_equal(&backend->addr, &lb.pkt.flow.saddr) ||
	    !nat_client_hop_is(&lb, &n, client) || !fast_goes(ctx, &lb, &client->hop) ||
	    !fast_translate(ctx, &lb, &n, &client->hop))
		return FAST_DOUBT;
	nat_backend_seen(&lb, &n, nat_life_in(head, &n));
	count_reply(&lb, backend->service);
	return fast_sent(&lb, &client->hop);
}

#endif
