/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about translated packets (RFC 5508): what a router or a backend says of what
 * we sent it is told to the client, what the client's side says of our answers to the
 * backend. Who it was that said so is hidden like everything else behind the VIP or our
 * own address, which are routable where the error goes; its own address need not be.
 */
#ifndef TOWPATH_SNAT_ICMP_H
#define TOWPATH_SNAT_ICMP_H

#include "icmp.h"
#include "snat.h"

/* From RFC 792 and 4443; <linux/icmp.h> includes more than a BPF program can. */
enum quoting {
	QUOTING_HEADER = 8,    /* in front of the quote */
	QUOTING_TRANSPORT = 8, /* bytes of the transport header that are quoted at least */
	QUOTING_OFFSET = 0x1fff,
	QUOTING_OFFSET_V6 = 0xfff8,
};

/*
 * Both read the quoted IP header: fill the flow turned round, and quoted_id if it is of a
 * first fragment. They return the header's length, or 0.
 */
static __always_inline __u32 quoted_ipv4(struct cursor *c, struct flow_key *flow, struct nat *n)
{
	struct iphdr *ip = cursor_take(c, struct iphdr);

	if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(QUOTING_OFFSET))
		return 0;
	*flow = (struct flow_key){
		.saddr.word[3] = ip->daddr,
		.daddr.word[3] = ip->saddr,
		.protocol = ip->protocol,
		.family = FAMILY_V4,
	};
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT))
		n->quoted_id = n->quote + offsetof(struct iphdr, id);
	return ip->ihl * 4;
}

static __always_inline __u32 quoted_ipv6(struct cursor *c, struct flow_key *flow, struct nat *n)
{
	struct ipv6hdr *ip = cursor_take(c, struct ipv6hdr);
	struct ipv6_fragment *frag;

	if (!ip || ip->version != 6)
		return 0;
	__builtin_memcpy(&flow->saddr, &ip->daddr, 16);
	__builtin_memcpy(&flow->daddr, &ip->saddr, 16);
	flow->protocol = ip->nexthdr;
	flow->family = FAMILY_V6;
	flow->_reserved = 0;
	if (ip->nexthdr != IPPROTO_FRAGMENT)
		return sizeof(*ip);
	frag = cursor_take(c, struct ipv6_fragment);
	if (!frag || frag->offset & bpf_htons(QUOTING_OFFSET_V6))
		return 0;
	flow->protocol = frag->nexthdr;
	if (frag->offset & bpf_htons(IPV6_FRAGMENT))
		n->quoted_id = n->quote + sizeof(*ip) + offsetof(struct ipv6_fragment, id);
	return sizeof(*ip) + sizeof(*frag);
}

/*
 * Reads an error and makes w->pkt.flow what it is about, as a packet of the other side's:
 * with the quoted destination as its source. False if it isn't about TCP or UDP, or says
 * too little. The outer destination must have sent what is quoted.
 */
static __noinline bool nat_read_error(struct xdp_md *ctx, struct work *w, struct nat *n)
{
	bool v4 = w->pkt.flow.family == FAMILY_V4;
	struct address to = w->pkt.flow.daddr;
	struct cursor c = cursor_of(ctx);
	struct flow_key *flow = &w->pkt.flow;
	struct ports *ports;
	__u32 header, check;
	__u8 *type;

	c.pos += (w->pkt.l3_offset & 0x1f) + (w->pkt.l4_offset & TRANSLATE_L4);
	type = c.pos;
	if ((void *)type + QUOTING_HEADER > c.end || !icmp_is_error(v4, *type))
		return false;
	c.pos = (void *)type + QUOTING_HEADER;
	n->quote = w->pkt.l4_offset + QUOTING_HEADER;
	n->quoted_id = 0;
	header = v4 ? quoted_ipv4(&c, flow, n) : quoted_ipv6(&c, flow, n);
	if (!header || (flow->protocol != IPPROTO_TCP && flow->protocol != IPPROTO_UDP))
		return false;

	ports = (void *)type + QUOTING_HEADER + (header & 0x3f);
	if ((void *)(ports + 1) > c.end)
		return false;
	flow->sport = ports->dest;
	flow->dport = ports->source;
	n->quoted_ports = n->quote + header;
	/* A quote may end before TCP's checksum. */
	check = n->quoted_ports + (flow->protocol == IPPROTO_TCP ? 16 : 6);
	n->quoted_check = check + 2 <= w->pkt.l3_length ? check : 0;
	return n->quoted_ports + QUOTING_TRANSPORT <= w->pkt.l3_length &&
	       address_equal(&flow->daddr, &to);
}

/* Finds whom it is for: fills n as for a packet of the flow's. Returns the backend, or NULL. */
static __always_inline struct backend *nat_of_error(struct work *w, struct nat *n, bool *to_client)
{
	*to_client = nat_may_be(&w->pkt.flow) && nat_find_reply(w->row);
	if (*to_client) {
		struct backend *backend = backend_of(n->handle);

		return backend && address_equal(&backend->addr, &w->pkt.flow.saddr) ? backend
										    : NULL;
	}
	w->hash = hash_flow(&w->pkt.flow, hash_seed);
	return nat_find(w, n) ? backend_of(n->handle) : NULL;
}

/*
 * For an ICMP packet. Returns the verdict; PASS_PROTOCOL if it isn't about a packet that
 * was translated. For one about an answer, n->service is the service that it was for.
 */
__noinline int nat_error(struct xdp_md *ctx, __u32 row)
{
	struct work *w = work_of(row);
	struct nat *n = nat_of(row);
	struct backend *backend;
	bool to_client;
	int checked;

	if (!w || !n)
		return VERDICT_PASS_PROTOCOL;
	n->service = 0;
	w->jiffies = bpf_jiffies64();
	if (w->pkt.l4_offset > TRANSLATE_L4 / 2 || !nat_read_error(ctx, w, n))
		return VERDICT_PASS_PROTOCOL;
	backend = nat_of_error(w, n, &to_client);
	if (!backend)
		return VERDICT_PASS_PROTOCOL;
	if (!to_client)
		n->service = backend->service;
	checked = nat_check(&w->pkt);
	if (checked != PARSE_OK)
		return checked;
	return to_client ? nat_to_client(ctx, row) : nat_to_backend(ctx, row);
}

#endif
