/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Writes another end, or both, into a packet. */
#ifndef TOWPATH_SOCKET_PACKET_WRITE_H
#define TOWPATH_SOCKET_PACKET_WRITE_H

#include "socket/packet_maps.h"
#include "xlat/rewrite.h"

/*
 * Both in functions of their own, for the verifier. What is written is in w->p.to and to_port.
 * `ids`: fragments have identifications of a backend's, of which a pod sees several as one sender.
 */
__noinline int packet_write_source(struct __sk_buff *skb, __u32 ids)
{
	struct packet_work *w = packet_work();
	struct xlat_change change = { .ids = ids };

	if (!w)
		return -1;
	/* An error is from a router on the way, or from who is translated. */
	change.keep = w->p.kind == XLAT_ERROR && !address_equal(&w->p.ip.saddr, &w->p.flow.saddr);
	return xlat_write(skb, &w->p, true, change);
}

__noinline int packet_write_destination(struct __sk_buff *skb, __u32 ids)
{
	struct packet_work *w = packet_work();
	struct xlat_change change = { .ids = ids };

	return w ? xlat_write(skb, &w->p, false, change) : -1;
}

static __always_inline int packet_become_from(struct __sk_buff *skb, struct packet_work *w,
					      const struct address *address, __be16 port, bool ids)
{
	if (address_equal(&w->p.flow.saddr, address) && w->p.flow.sport == port)
		return 0;
	w->p.to = *address;
	w->p.to_port = port;
	return packet_write_source(skb, ids);
}

static __always_inline int packet_become_to(struct __sk_buff *skb, struct packet_work *w,
					    const struct address *address, __be16 port, bool ids)
{
	if (address_equal(&w->p.flow.daddr, address) && w->p.flow.dport == port)
		return 0;
	w->p.to = *address;
	w->p.to_port = port;
	return packet_write_destination(skb, ids);
}

#endif
