/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about translated packets (RFC 5508): what a router or a backend says of what
 * we sent it is told to the client, what the client's side says of our answers to the
 * backend. Who it was that said so is hidden like everything else behind the VIP or our
 * own address, which are routable where the error goes; its own address need not be.
 */
#ifndef TOWPATH_SNAT_ICMP_H
#define TOWPATH_SNAT_ICMP_H

#include "lb/icmp.h"
#include "lb/sources.h"
#include "snat/snat.h"

/*
 * Reads an error and makes lb->pkt.flow what it is about, as a packet of the other side's:
 * with the quoted destination as its source. False if it isn't about TCP or UDP, or says
 * too little. The outer destination must have sent what is quoted.
 */
static __noinline bool nat_read_error(struct xdp_md *ctx, struct lb_ctx *lb, struct nat *n)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	struct cursor c = cursor_of(ctx);
	__u32 check;
	__u8 *type;

	lb->hdr.at = lb->pkt.l3_offset + lb->pkt.l4_offset;
	if (!hdr_cursor(&lb->hdr, &c))
		return false;
	type = cursor_take(&c, __u8);
	if (!type || !icmp_is_error(v4, *type))
		return false;
	lb->hdr.at += sizeof(struct icmp_header);
	n->quote.at = lb->pkt.l4_offset + sizeof(struct icmp_header);
	if (icmp_quoted(ctx, lb->slot) != PARSE_OK || lb->hdr.authenticated)
		return false;
	n->quote.ports = lb->hdr.at - lb->pkt.l3_offset;
	n->quote.id = lb->hdr.fragment ? lb->hdr.id_at - lb->pkt.l3_offset : 0;
	/* A quote may end before TCP's checksum. */
	check = n->quote.ports + (lb->pkt.flow.protocol == IPPROTO_TCP ? 16 : 6);
	n->quote.check = check + 2 <= lb->pkt.l3_length ? check : 0;
	return check < TRANSLATE_L4;
}

/* Finds whom it is for: fills n as for a packet of the flow's. Returns the backend, or NULL. */
static __always_inline struct backend *nat_of_error(struct lb_ctx *lb, struct nat *n,
						    bool *to_client)
{
	*to_client = nat_may_be(&lb->pkt.flow) && nat_find_reply(lb->slot);
	if (*to_client) {
		struct backend *backend = backend_of(n->handle);

		return backend && address_equal(&backend->addr, &lb->pkt.flow.saddr) ? backend
										     : NULL;
	}
	lb->hash = hash_flow(&lb->pkt.flow, hash_seed);
	return nat_find(lb, n) ? backend_of(n->handle) : NULL;
}

/* Whether the service is for the client, as it has to be for what the client's side sends. */
static __always_inline bool nat_allowed_source(const struct lb_ctx *lb, __u32 id)
{
	struct service *service = bpf_map_lookup_elem(&services, &id);
	__u32 set = service ? *(const volatile __u32 *)&service->sources : 0;

	return !set || source_allowed(&lb->pkt.flow, set);
}

/*
 * For an ICMP packet. Returns the verdict; PASS_PROTOCOL if it isn't about a packet that
 * was translated. For one about an answer, n->service is the service that it was for.
 */
__noinline int nat_error(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct nat *n = nat_of(slot);
	struct backend *backend;
	bool to_client;
	int checked;

	if (!lb || !n)
		return VERDICT_PASS_PROTOCOL;
	n->service = 0;
	lb->jiffies = bpf_jiffies64();
	if (lb->pkt.l4_offset > TRANSLATE_L4 / 2 || !nat_read_error(ctx, lb, n))
		return VERDICT_PASS_PROTOCOL;
	backend = nat_of_error(lb, n, &to_client);
	if (!backend)
		return VERDICT_PASS_PROTOCOL;
	if (!to_client) {
		n->service = backend->service;
		if (!nat_allowed_source(lb, n->service))
			return VERDICT_DROP_SOURCE;
	}
	checked = nat_check(&lb->pkt);
	if (checked != PARSE_OK)
		return checked;
	return to_client ? nat_to_client(ctx, slot) : nat_to_backend(ctx, slot);
}

#endif
