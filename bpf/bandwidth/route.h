/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way of a pod's packet past the stack: the stack takes a packet away from its socket, which then
 * isn't held back by what waits at the device, and from its time of departure.
 *
 * Only what the stack would simply forward goes this way: from an address whose packets are routed to
 * the device that it came in by, to another host, out of a device that paces.
 */
#ifndef TOWPATH_BANDWIDTH_ROUTE_H
#define TOWPATH_BANDWIDTH_ROUTE_H

#include <linux/pkt_cls.h>

#include "bandwidth/maps.h"
#include "net/fib.h"

struct bw_way {
	struct address from;
	struct address to;
	__u32 length; /* of the packet, or 0 of several segments, whose size the kernel knows */
	__u8 family;
	__u8 tos;
	__u8 protocol;
	__u8 ttl;
};

static __always_inline bool bw_read_ipv4(struct __sk_buff *skb, struct bw_way *w)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip, sizeof(ip)) || ip.version != 4 ||
	    ip.ihl != 5)
		return false;
	w->from = (struct address){ .word[3] = ip.saddr };
	w->to = (struct address){ .word[3] = ip.daddr };
	w->family = FAMILY_V4;
	w->tos = ip.tos;
	w->protocol = ip.protocol;
	w->ttl = ip.ttl;
	w->length = skb->gso_size ? 0 : bpf_ntohs(ip.tot_len);
	return true;
}

static __always_inline bool bw_read_ipv6(struct __sk_buff *skb, struct bw_way *w)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip, sizeof(ip)) || ip.version != 6 ||
	    ip.nexthdr == IPPROTO_HOPOPTS || ip.nexthdr == IPPROTO_ROUTING)
		return false;
	__builtin_memcpy(&w->from, &ip.saddr, 16);
	__builtin_memcpy(&w->to, &ip.daddr, 16);
	w->family = FAMILY_V6;
	w->tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	w->protocol = ip.nexthdr;
	w->ttl = ip.hop_limit;
	w->length = skb->gso_size ? 0 : sizeof(ip) + bpf_ntohs(ip.payload_len);
	return true;
}

static __always_inline bool bw_read_way(struct __sk_buff *skb, struct bw_way *w)
{
	bool read =
		skb->protocol == bpf_htons(ETH_P_IP) ? bw_read_ipv4(skb, w) : bw_read_ipv6(skb, w);

	return read && w->ttl > 1 && address_is_host(&w->from, w->family) &&
	       address_is_host(&w->to, w->family) &&
	       (w->family == FAMILY_V6 || bpf_ntohl(w->to.word[3]) >> 16 != 0xa9fe);
}

/* Whether packets to where this comes from go out of the device that it came in by. */
static __always_inline bool bw_is_from_here(struct __sk_buff *skb, const struct bw_way *w)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };

	fib_addresses(&fib, w->family, &w->to, &w->from);
	return fib_found(fib_lookup(skb, &fib, false)) && fib.ifindex == skb->ifindex;
}

static __always_inline bool bw_decrease_ttl(struct __sk_buff *skb, const struct bw_way *w)
{
	__u8 ttl = w->ttl - 1;
	__u32 ip = sizeof(struct ethhdr);

	if (w->family == FAMILY_V6)
		return !bpf_skb_store_bytes(skb, ip + offsetof(struct ipv6hdr, hop_limit), &ttl, 1,
					    0);
	return !bpf_l3_csum_replace(skb, ip + offsetof(struct iphdr, check),
				    bpf_htons(w->ttl << 8 | w->protocol),
				    bpf_htons(ttl << 8 | w->protocol), 2) &&
	       !bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, ttl), &ttl, 1, 0);
}

/* TC_ACT_REDIRECT, or TC_ACT_UNSPEC: it is the stack's. Global, for the verifier. */
__noinline int bw_route(struct __sk_buff *skb)
{
	struct bpf_redir_neigh next = {};
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	struct bw_way w = {};
	__u32 egress;

	if (skb->pkt_type || skb->vlan_present || !bw_is_ip(skb) || !bw_read_way(skb, &w))
		return TC_ACT_UNSPEC;
	fib_addresses(&fib, w.family, &w.from, &w.to);
	fib.tot_len = w.length;
	fib.tos = w.tos;
	if (!fib_found(fib_lookup(skb, &fib, false)))
		return TC_ACT_UNSPEC;
	egress = fib.ifindex;
	if (!bpf_map_lookup_elem(&bw_devices, &egress) || !bw_is_from_here(skb, &w) ||
	    !bw_decrease_ttl(skb, &w))
		return TC_ACT_UNSPEC;
	next.nh_family = fib.family;
	if (fib.family == AF_INET)
		next.ipv4_nh = fib.ipv4_dst;
	else
		__builtin_memcpy(next.ipv6_nh, fib.ipv6_dst, 16);
	return bpf_redirect_neigh(egress, &next, sizeof(next), 0);
}

#endif
