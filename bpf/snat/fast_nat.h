/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fast way of packets of IPv4 that are translated: a client's whose translation is at its first
 * candidate, and a backend's. What snat/fast.h says of the fast way holds here.
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

/* Translates the packet and puts it in its frame. False: it can't be, and is as it was. */
static __always_inline bool fast_translate(struct xdp_md *ctx, const struct lb_ctx *lb,
					   const struct nat *n, const struct next_hop *hop)
{
	struct cursor c = cursor_of(ctx);
	struct iphdr *ip;

	if (!fast_leaves(ctx, hop) || !next_hop_fits(lb, hop, 0) ||
	    !write_link(&c, hop, 0, bpf_htons(ETH_P_IP), plain_headers(true) - ETH_HLEN))
		return false;
	ip = c.pos;
	translate_transport(ip + 1, &n->tuple, lb->pkt.flow.protocol == IPPROTO_TCP,
			    translate_ipv4(ip, &n->tuple));
	return true;
}

/* For a client's packet that begins nothing. `hash`: of its flow. */
__noinline int fast_nat_client(struct xdp_md *ctx, __u32 index, __u64 hash)
{
	struct lb_ctx lb = { .hash = hash };
	struct nat n = {};
	struct backend *backend;
	struct backend_cpu *stats;
	struct nat_head *head;
	struct nat_life *life;
	__u32 at;

	if (!fast_nat_context(ctx, &lb, &n) || !nat_choices(&lb) || nat_check(&lb.pkt) != PARSE_OK)
		return FAST_DOUBT;
	n.timeout = lb.pkt.flow.protocol == IPPROTO_UDP ? nat_timeout_of(index) : 0;
	nat_begin(&lb, &n);
	nat_candidate(&lb, &n, n.search.first);
	at = n.search.set;
	head = bpf_map_lookup_elem(&nat_heads, &at);
	if (!head || !nat_look(&lb, &n, head))
		return FAST_DOUBT;
	backend = backend_of(n.handle);
	life = nat_life_in(head, &n);
	if (!life || !nat_still(&lb, &n, life, backend, index))
		return FAST_DOUBT;
	stats = backend_stats(lb.cpu, n.handle & ((1 << HANDLE_INDEX_BITS) - 1));
	if (!stats || !next_hop_holds(&lb, &stats->hop, lb.rx_ifindex))
		return FAST_DOUBT;
	nat_towards(&n, backend, true);
	if (!fast_translate(ctx, &lb, &n, &stats->hop))
		return FAST_DOUBT;
	nat_client_seen(&lb, &n, life);
	count_sent(&lb, stats);
	count_service(&lb, index, false, VERDICT_TX);
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

	if (!fast_nat_context(ctx, &lb, &n) || nat_check(&lb.pkt) != PARSE_OK)
		return FAST_DOUBT;
	head = nat_look_reply(&lb, &n);
	if (!head)
		return FAST_DOUBT;
	backend = backend_of(n.handle);
	client = nat_client_hop_of(&lb, &n);
	if (!backend || !client || !address_equal(&backend->addr, &lb.pkt.flow.saddr) ||
	    !nat_client_hop_holds(&lb, &n, client) || !fast_translate(ctx, &lb, &n, &client->hop))
		return FAST_DOUBT;
	nat_backend_seen(&lb, &n, nat_life_in(head, &n));
	count_reply(&lb, backend->service);
	return fast_sent(&lb, &client->hop);
}

#endif
