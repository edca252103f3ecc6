/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets of flows that have a backend's address in the place of a service's, whoever the clients
 * are: read, noted, and given the service's address again.
 */
#ifndef TOWPATH_SOCKET_PACKET_FLOW_H
#define TOWPATH_SOCKET_PACKET_FLOW_H

#include "socket/packet_table.h"
#include "socket/packet_write.h"
#include "xlat/parse.h"

enum packet_go {
	PACKET_FINE = -1, /* else an enum packet_verdict */
};

static __always_inline bool packet_has_ports(const struct packet_work *w)
{
	return w->p.flow.protocol == IPPROTO_TCP || w->p.flow.protocol == IPPROTO_UDP;
}

/* Reads a packet. False: it is none that could be translated. */
static __always_inline bool packet_parse(struct __sk_buff *skb, struct packet_work *w,
					 const bool from_client)
{
	if (!xlat_parse(skb, &w->p, sizeof(struct ethhdr), from_client))
		return false;
	if (unlikely(w->p.problem == XLAT_NO_FIRST))
		return true;
	/* Whatever it is of: others follow, and are known then not to be ours either. */
	if (unlikely(w->p.ip.fragment && w->p.problem != XLAT_MALFORMED))
		xlat_learn_fragment();
	return w->p.problem == XLAT_FINE && packet_has_ports(w);
}

/* ---- What is noted of them -------------------------------------------------------- */

/* Notes a packet of the client's: it confirms the flow if the backend has answered. */
static __always_inline void packet_client_seen(const struct packet_work *w)
{
	struct packet_flow *e = packet_entry(w);
	__u8 more = packet_marks(w);

	if (!e)
		return;
	/* The same ports for another connection. */
	if (tcp_begins(w->p.flags) && nat_is_closing(e->life.client, e->life.backend)) {
		e->life.client = 0;
		e->life.backend = 0;
	}
	if (!(w->p.flags & TCP_SYN) && e->life.backend & NAT_ANSWERED)
		more |= NAT_ANSWERED;
	packet_note(&e->life, &e->life.client, more, w->p.now);
}

static __always_inline void packet_backend_seen(const struct packet_work *w)
{
	struct packet_flow *e = packet_entry(w);

	if (e)
		packet_note(&e->life, &e->life.backend, NAT_ANSWERED | packet_marks(w), w->p.now);
}

/* Whether one more flow may begin: a flood of them mustn't take all the room there is, nor time. */
static __always_inline bool packet_may_bind(struct packet_work *w)
{
	if (w->begun_at != (__u32)w->p.jiffies) {
		w->begun_at = w->p.jiffies;
		w->begun = 0;
	}
	return w->begun++ < packet_rate;
}

/* ---- The way back ----------------------------------------------------------------- */

/* Gives a packet of a backend's the service's address, if it is of a flow that is known. */
static __always_inline __u32 packet_restore(struct __sk_buff *skb, struct packet_work *w)
{
	const struct packet_flow *f = &w->found;

	w->ends.client = w->p.flow.daddr;
	w->ends.backend = w->p.flow.saddr;
	w->ends.port = w->p.flow.dport;
	w->ends.backend_port = w->p.flow.sport;
	if (!packet_find_ends())
		return PACKET_PASS_NO_FLOW;
	if (likely(w->p.kind == XLAT_PLAIN))
		packet_backend_seen(w);
	if (packet_become_from(skb, w, &f->vip, f->vip_port, true) ||
	    packet_become_to(skb, w, &f->client, f->client_port, false))
		return PACKET_DROP_WRITE;
	return PACKET_RESTORED;
}

#endif
