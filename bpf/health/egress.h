/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packets of health checks, sent to a backend in the way of a client's.
 *
 * The kernel's TCP makes them: a socket of this node's own is connected to the
 * VIP, and routing by its mark brings what it sends to the loopback device, where
 * this looks up which backend the connection is for. The packet inside stays as
 * it is, checksum included. The backend answers from the VIP to the node's own
 * address, which is what the socket waits for.
 */
#ifndef TOWPATH_HEALTH_EGRESS_H
#define TOWPATH_HEALTH_EGRESS_H

#include <linux/pkt_cls.h>

#include "health/foreign.h"
#include "lb/maps.h"
#include "lb/route.h"
#include "lb/tunnel.h"
#include "net/encap.h"
#include "net/fib.h"
#include "net/hash.h"

static __always_inline void health_count(__u32 verdict)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct health_cpu *stats = bpf_map_lookup_elem(&health_cpus, &cpu);

	if (stats && verdict < HEALTH_MAX)
		stats->packets[verdict]++;
}

/* The kernel's own segments have no IPv4 options and no IPv6 extensions: nothing else is a probe. */
static __always_inline bool health_parse_v4(struct cursor *c, struct packet *pkt)
{
	struct iphdr *ip = cursor_take(c, struct iphdr);

	if (!ip || ip->ihl != sizeof(*ip) / 4 || ip->frag_off & bpf_htons(IPV4_FRAGMENT))
		return false;
	pkt->flow.saddr.word[3] = ip->saddr;
	pkt->flow.daddr.word[3] = ip->daddr;
	pkt->flow.protocol = ip->protocol;
	pkt->flow.family = FAMILY_V4;
	pkt->l3_length = bpf_ntohs(ip->tot_len);
	pkt->fragment = ip->frag_off;
	pkt->id = ip->id;
	pkt->tos = ip->tos;
	return true;
}

static __always_inline bool health_parse_v6(struct cursor *c, struct packet *pkt)
{
	struct ipv6hdr *ip = cursor_take(c, struct ipv6hdr);

	if (!ip)
		return false;
	__builtin_memcpy(&pkt->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(&pkt->flow.daddr, &ip->daddr, 16);
	pkt->flow.protocol = ip->nexthdr;
	pkt->flow.family = FAMILY_V6;
	pkt->l3_length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	pkt->tos = bpf_ntohl(*(__be32 *)ip) >> 20;
	return true;
}

static __always_inline bool health_parse(struct __sk_buff *skb, struct packet *pkt)
{
	struct cursor c = cursor_of(skb);
	struct ethhdr *eth = cursor_take(&c, struct ethhdr);
	struct ports *ports;
	bool parsed = false;

	if (!eth)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		parsed = health_parse_v4(&c, pkt);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		parsed = health_parse_v6(&c, pkt);
	if (!parsed || (pkt->flow.protocol != IPPROTO_TCP && pkt->flow.protocol != IPPROTO_UDP))
		return false;
	ports = cursor_take(&c, struct ports);
	if (!ports)
		return false;
	pkt->flow.sport = ports->source;
	pkt->flow.dport = ports->dest;
	return true;
}

static __always_inline struct health_probe *health_probe_of(const struct packet *pkt, __u32 mark)
{
	struct health_key key = {
		.addr = pkt->flow.saddr,
		.port = pkt->flow.sport,
		.protocol = pkt->flow.protocol,
		.family = pkt->flow.family,
	};

	if (is_foreign_mark(mark))
		return foreign_probe(pkt, mark);
	return bpf_map_lookup_elem(&health_probes, &key);
}

/* Returns the device that leads to the backend and tells the source, 0 if there is no way. */
static __noinline __u32 health_route(struct __sk_buff *skb, const struct health_probe *probe,
				     struct next_hop *hop, __u64 flow)
{
	struct bpf_fib_lookup fib = {};
	__u32 mask;
	int result;

	if (!probe || !hop)
		return 0;
	result = route_find(skb, &probe->to.addr, route_to(probe->to.family, probe->encap),
			    probe->ifindex, probe->way == HEALTH_L2, flow, &mask, &fib);
	/* The kernel sends it, and resolves what it has to. */
	if (!fib_found(result))
		return 0;
	if (probe->way == HEALTH_L2)
		return fib_on_link(&fib, &probe->to.addr, probe->to.family) ? fib.ifindex : 0;
	result = fib_take_source(hop, &fib, probe->to.family == FAMILY_V4, result);
	return result == FIB_NO_SOURCE ? 0 : fib.ifindex;
}

/*
 * As it is, in a frame for that very host. The packet that has the kernel resolve the
 * neighbour is lost: it keeps its route to the loopback device, which the kernel goes by
 * when the answer comes. TCP sends it again.
 */
static __always_inline int health_relink(const struct health_probe *probe, __u32 ifindex)
{
	struct bpf_redir_neigh next_hop = { .nh_family = probe->to.family };

	if (probe->to.family == FAMILY_V4)
		next_hop.ipv4_nh = probe->to.addr.word[3];
	else
		__builtin_memcpy(next_hop.ipv6_nh, &probe->to.addr, 16);
	return bpf_redirect_neigh(ifindex, &next_hop, sizeof(next_hop), 0);
}

/*
 * For a packet with a mark of health checks. Returns what tc is to do with it. What
 * isn't sent must not go on either: it would be delivered on this node, and whoever
 * listens here would be taken for the backend.
 */
static __always_inline int health_send(struct __sk_buff *skb)
{
	struct packet pkt = {};
	struct next_hop hop = {};
	struct outer outer = { .hop = &hop };
	struct health_probe *probe;
	__u32 ifindex;

	probe = health_parse(skb, &pkt) ? health_probe_of(&pkt, skb->mark) : NULL;
	if (!probe) {
		health_count(HEALTH_DROP_UNKNOWN);
		return TC_ACT_SHOT;
	}
	/* This node is the backend, and has the VIP. The mark keeps it on the loopback device. */
	if (probe->way == HEALTH_HERE) {
		health_count(HEALTH_SENT);
		return TC_ACT_UNSPEC;
	}
	/*
	 * Read from a map it is any number to the verifier. That of 5.10 otherwise takes the family
	 * that its first way through the parser has set for the only one, and removes what is for
	 * the other.
	 */
	pkt.flow.family = probe->family;
	outer.hash = hash_flow(&pkt.flow, hash_seed) >> 32;
	ifindex = health_route(skb, probe, &hop, tunnel_flow(outer.hash, pkt.tos));
	if (!ifindex) {
		health_count(HEALTH_DROP_NO_ROUTE);
		return TC_ACT_SHOT;
	}
	/* From here on it is any packet: the mark would route it back. */
	skb->mark = 0;
	if (probe->way == HEALTH_L2) {
		health_count(HEALTH_SENT);
		return health_relink(probe, ifindex);
	}
	outer.daddr = &probe->to.addr;
	outer.family = &probe->to.family;
	outer.wraps = true;
	outer.encap = probe->encap;
	outer.between = encap_between(probe->encap);
	outer.length = outer_length(probe->to.family) + outer.between;
	hop.vary = tunnel_varies(probe->to.family);
	tunnel_source(&outer);
	if (skb_encap(skb, &pkt, &outer)) {
		health_count(HEALTH_DROP_HEADROOM);
		return TC_ACT_SHOT;
	}
	health_count(HEALTH_SENT);
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

#endif
