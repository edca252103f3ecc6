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
		return hdr_read_ipv4(&lb->hdr, cursor_of(ctx));
	return read_ipv6(ctx, &lb->hdr, slot);
}

#endif
