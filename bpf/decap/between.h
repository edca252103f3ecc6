/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What may be between the outer IP header and the packet: GRE (RFC 2784), UDP, GUE. */
#ifndef TOWPATH_DECAP_BETWEEN_H
#define TOWPATH_DECAP_BETWEEN_H

#include "net/parse.h"
#include "net/tunnels.h"

enum between_limits {
	UDP_PORTS = 4,
	GUE_CONTROL = 0x20, /* no data, but a message */
	GUE_LENGTH = 0x1f,  /* words behind the first one: optional fields and private data */
	GUE_VARIANT_SHIFT = 6,
	IP_VERSION_SHIFT = 4,
};

/* Written before the program is loaded. */
const volatile bool takes_gre;
const volatile bool takes_udp;
const volatile __be16 udp_ports[UDP_PORTS]; /* 0: none */

static __always_inline bool is_tunnel_port(__be16 port)
{
	for (__u32 i = 0; i < UDP_PORTS; i++)
		if (port && port == udp_ports[i])
			return true;
	return false;
}

/* Without checksum, key or sequence number: those are the kernel's. */
static __always_inline bool take_gre(struct cursor *c, __u8 *protocol, __u32 *length)
{
	struct gre_header *gre = cursor_take(c, struct gre_header);

	if (!gre || gre->flags)
		return false;
	if (gre->ethertype == bpf_htons(ETH_P_IP))
		*protocol = IPPROTO_IPIP;
	else if (gre->ethertype == bpf_htons(ETH_P_IPV6))
		*protocol = IPPROTO_IPV6;
	else
		return false;
	*length -= sizeof(*gre);
	return true;
}

/* Behind UDP is an IP packet, which FOU and GUE's variant 1 have in common, or a header of variant 0. */
static __always_inline bool take_gue(struct cursor *c, __u8 *protocol, __u32 *length)
{
	struct gue_header *gue = c->pos;
	__u32 header;
	__u8 first;

	if ((void *)(gue + 1) > c->end)
		return false;
	first = gue->length;
	if (first >> IP_VERSION_SHIFT == 4 || first >> IP_VERSION_SHIFT == 6) {
		*protocol = first >> IP_VERSION_SHIFT == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
		return true;
	}
	if (first >> GUE_VARIANT_SHIFT || first & GUE_CONTROL)
		return false;
	if (gue->protocol != IPPROTO_IPIP && gue->protocol != IPPROTO_IPV6)
		return false;
	*protocol = gue->protocol;
	header = sizeof(*gue) + (first & GUE_LENGTH) * 4;
	*length -= header;
	c->pos += header;
	return true;
}

/*
 * Moves the cursor to the packet. `protocol`: of what follows the outer IP header, then of the packet;
 * `length`: bytes that there are by that header, then by these. A checksum of UDP isn't looked at: what is
 * within has its own. False: it is no tunnel's, the cursor is anywhere. A `length` that has grown: there
 * is less than these headers say.
 */
static __always_inline bool take_between(struct cursor *c, __u8 *protocol, __u32 *length)
{
	struct udphdr *udp;

	if (*protocol == IPPROTO_GRE)
		return take_gre(c, protocol, length);
	if (*protocol != IPPROTO_UDP)
		return true;
	udp = cursor_take(c, struct udphdr);
	if (!udp || !is_tunnel_port(udp->dest))
		return false;
	if (bpf_ntohs(udp->len) > *length || bpf_ntohs(udp->len) < sizeof(*udp)) {
		*length = ~0U;
		return true;
	}
	*length = bpf_ntohs(udp->len) - sizeof(*udp);
	return take_gue(c, protocol, length);
}

#endif
