/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Clients' packets to backends on this node. Which backend a packet is for the load balancer has
 * said; here its flow is entered, so that the answers are known, and the destination written.
 */
#ifndef TOWPATH_LOCAL_IN_H
#define TOWPATH_LOCAL_IN_H

#include "local/maps.h"
#include "net/fib.h"
#include "socket/packet_flow.h"

/* The note that is in front of a packet for a backend here, NULL: there is none. */
static __always_inline const struct punt_local *local_note(const struct __sk_buff *skb)
{
	const struct punt_local *mark = (void *)(long)skb->data_meta;

	if ((void *)(mark + 1) > (void *)(long)skb->data)
		return NULL;
	if (mark->cookie != trace_cookie || !trace_cookie || mark->family != PUNT_LOCAL)
		return NULL;
	return mark;
}

/*
 * Whether the flow that was found goes on. Not if it has another backend by now, since the load
 * balancer remembers no flow but by what it has sent; nor, where a connection begins, if the
 * backend's port is another one.
 */
static __always_inline bool local_goes_on(const struct packet_work *w)
{
	struct nat_life life = w->found.life;

	if (!address_equal(&w->found.backend, &w->ends.backend) ||
	    packet_expired(&w->found, w->p.now))
		return false;
	if (!tcp_begins(w->p.flags) || w->found.backend_port == w->ends.backend_port)
		return true;
	return life.client & NAT_ANSWERED && !nat_is_closing(life.client, life.backend);
}

/*
 * Whether what is answered passes a program that gives it the service's address: by the way that
 * the kernel would send it now. A look-up that finds none says nothing.
 */
static __noinline bool local_is_answered(struct __sk_buff *skb, const struct packet_work *w)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	__u32 device, one = 1;

	fib_addresses(&fib, w->p.flow.family, &w->ends.backend, &w->p.flow.saddr);
	fib.l4_protocol = w->p.flow.protocol;
	if (!fib_found(fib_lookup(skb, &fib, false)))
		return true;
	device = fib.ifindex;
	if (bpf_map_lookup_elem(&local_devices, &device))
		return true;
	bpf_map_update_elem(&local_wanted, &device, &one, BPF_ANY);
	return false;
}

/* Enters a flow that isn't known. PACKET_FINE, or the verdict. */
static __noinline int local_begin_flow(struct __sk_buff *skb, struct packet_work *w)
{
	struct packet_counts *counts;
	int result;

	if (w->p.flags & TCP_RST)
		return PACKET_DROP_NO_FLOW;
	if (!packet_may_bind(w))
		return PACKET_DROP_RATE;
	if (!local_is_answered(skb, w))
		return PACKET_DROP_DEVICE;
	result = packet_bind(false);
	if (result == PACKET_NO_ROOM)
		result = packet_bind(true);
	if (result == PACKET_NO_ROOM)
		return PACKET_DROP_FULL;
	counts = packet_count(PACKET_FROM_POD);
	if (result == PACKET_BOUND && counts)
		counts->begun++;
	return PACKET_FINE;
}

/* Finds what the packet is translated by, or makes it. PACKET_FINE, or the verdict. */
static __always_inline int local_translation(struct __sk_buff *skb, struct packet_work *w)
{
	bool found = packet_find(w);

	if (unlikely(w->p.kind == XLAT_ERROR)) /* about an answer */
		return found ? PACKET_FINE : PACKET_PASS_NO_FLOW;
	if (likely(found && local_goes_on(w))) {
		packet_client_seen(w);
		return PACKET_FINE;
	}
	if (found)
		packet_forget();
	return local_begin_flow(skb, w);
}

/* For a packet with a note. Returns the verdict. */
static __always_inline __u32 local_to_backend(struct __sk_buff *skb, const struct punt_local *note)
{
	struct packet_work *w = packet_work();
	const struct packet_flow *f;
	int result;

	if (!w)
		return PACKET_PASS_OTHER;
	w->ends.backend = note->backend;
	w->ends.backend_port = note->port;
	w->timeout = note->timeout;
	w->handle = 0; /* of no table: the load balancer knows which backend it is */
	/* Answers may leave by another device than the one that the client's packets come in by. */
	w->ifindex = 0;
	if (!packet_parse(skb, w, true))
		return PACKET_PASS_OTHER;
	if (unlikely(w->p.problem == XLAT_NO_FIRST))
		return PACKET_DROP_FRAGMENT;
	result = local_translation(skb, w);
	if (result != PACKET_FINE)
		return result;
	f = &w->found;
	if (packet_become_to(skb, w, &f->backend, f->backend_port, w->p.kind == XLAT_ERROR) ||
	    packet_become_from(skb, w, &f->client, f->port, false))
		return PACKET_DROP_WRITE;
	return PACKET_BALANCED;
}

#endif
