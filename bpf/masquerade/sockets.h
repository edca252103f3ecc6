/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ports that sockets of this node's have. */
#ifndef TOWPATH_MASQUERADE_SOCKETS_H
#define TOWPATH_MASQUERADE_SOCKETS_H

#include "masquerade/maps.h"

static __always_inline bool masq_tcp_socket(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					    __u32 size)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool masq_udp_socket(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					    __u32 size)
{
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * Whether a socket of this node's would get what a remote sends to an address and port. `number`:
 * of the address. What is bound to the port and neither listens nor is connected is only in the
 * table that the agent keeps.
 */
__noinline int masq_has_socket(struct __sk_buff *skb, __u32 number, __u32 port, __u32 answer)
{
	struct masq_work *w = masq_work();
	struct masquerade_source *source = masq_source(number);
	struct bpf_sock_tuple tuple = {};
	const struct address *remote;
	bool tcp;

	if (!w || !source)
		return false;
	tcp = w->p.flow.protocol == IPPROTO_TCP;
	if (!tcp && w->p.flow.protocol != IPPROTO_UDP)
		return false;
	remote = answer ? &w->p.flow.saddr : &w->p.flow.daddr;
	if (w->p.flow.family == FAMILY_V4) {
		tuple.ipv4.saddr = remote->word[3];
		tuple.ipv4.daddr = source->address.word[3];
		tuple.ipv4.sport = answer ? w->p.flow.sport : w->p.flow.dport;
		tuple.ipv4.dport = port;
		return tcp ? masq_tcp_socket(skb, &tuple, sizeof(tuple.ipv4))
			   : masq_udp_socket(skb, &tuple, sizeof(tuple.ipv4));
	}
	__builtin_memcpy(tuple.ipv6.saddr, remote, 16);
	__builtin_memcpy(tuple.ipv6.daddr, &source->address, 16);
	tuple.ipv6.sport = answer ? w->p.flow.sport : w->p.flow.dport;
	tuple.ipv6.dport = port;
	return tcp ? masq_tcp_socket(skb, &tuple, sizeof(tuple.ipv6))
		   : masq_udp_socket(skb, &tuple, sizeof(tuple.ipv6));
}

/* Whether the agent has seen a socket that has bound the port, of whatever address. */
static __always_inline bool masq_port_taken(__be16 port, __u8 protocol)
{
	__u32 which = protocol == IPPROTO_UDP, number = bpf_ntohs(port);
	const struct masquerade_ports *ports = bpf_map_lookup_elem(&masq_ports, &which);

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	/* Or the compiler leaves the bound out, and Linux 5.10 doesn't know how far that is. */
	barrier_var(number);
	return ports && ports->taken[(number >> 6) % MASQ_PORT_WORDS] >> (number & 63) & 1;
}

#endif
