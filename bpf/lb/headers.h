/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads headers of packets that aren't whole, of TCP or UDP, step by step: see net/exthdr.h. */
#ifndef TOWPATH_LB_HEADERS_H
#define TOWPATH_LB_HEADERS_H

#include "lb/context.h"
#include "net/exthdr.h"

/* Skips one extension header; PARSE_OK: there is none. */
__noinline int skip_header(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	return lb ? hdr_skip(&lb->hdr, cursor_of(ctx)) : PARSE_PROTOCOL;
}

static __always_inline int skip_headers(struct xdp_md *ctx, __u32 slot)
{
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		int result = skip_header(ctx, slot);

		if (result != HDR_MORE)
			return result;
	}
	return PARSE_PROTOCOL;
}

/* What an authentication header stands in front of is the packet's all the same. */
static __always_inline int read_ipv4(struct xdp_md *ctx, struct hdr_state *hdr, __u32 slot)
{
	int result = hdr_read_ipv4(hdr, cursor_of(ctx));

	for (int i = 0; i < IPV6_EXTENSIONS && result == PARSE_OK; i++) {
		if (hdr->nexthdr != IPPROTO_AH)
			return PARSE_OK;
		result = skip_header(ctx, slot);
		if (result == HDR_MORE)
			result = PARSE_OK;
	}
	return result;
}

static __always_inline int read_ipv6(struct xdp_md *ctx, struct hdr_state *hdr, __u32 slot)
{
	int result = hdr_read_ipv6(hdr, cursor_of(ctx));

	if (result != PARSE_OK)
		return result;
	result = skip_headers(ctx, slot);
	if (result == PARSE_FRAGMENT && !hdr->offset)
		result = skip_headers(ctx, slot);
	return result;
}

/*
 * Reads the IP header that is next, of the packet's family, and skips its extension headers.
 * Returns PARSE_OK before a transport header, whose packet may be a first fragment;
 * PARSE_FRAGMENT before the rest of one that has none.
 */
__noinline int read_ip(struct xdp_md *ctx, __u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (!lb)
		return PARSE_MALFORMED;
	if (lb->pkt.flow.family == FAMILY_V4)
		return read_ipv4(ctx, &lb->hdr, slot);
	return read_ipv6(ctx, &lb->hdr, slot);
}

/*
 * Takes the ports that are next, and the flags of a segment if they are there. `least` bytes of a
 * TCP header must be. False: they aren't, or there are no ports.
 */
static __always_inline bool read_transport(struct xdp_md *ctx, struct lb_ctx *lb, __u32 least)
{
	bool tcp = lb->hdr.nexthdr == IPPROTO_TCP;
	struct cursor c = cursor_of(ctx);
	__u8 *flags;

	if (!hdr_ports(&lb->hdr, &lb->pkt, c, tcp ? least : sizeof(struct udphdr), &lb->pkt.flow))
		return false;
	lb->pkt.tcp_flags = 0;
	if (!tcp)
		return true;
	if (!hdr_within(&lb->hdr, &lb->pkt, TCP_FLAGS_AT + 1)) {
		lb->pkt_flags |= PKT_NO_LEARN; /* who knows what it is */
		return true;
	}
	if (!hdr_cursor(&lb->hdr, &c))
		return false;
	flags = c.pos + TCP_FLAGS_AT;
	if ((void *)(flags + 1) > c.end)
		return false;
	lb->pkt.tcp_flags = *flags;
	return true;
}

#endif
