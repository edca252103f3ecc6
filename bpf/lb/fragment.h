/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: the first one of a packet has ports and is balanced like any packet, those
 * that follow go where it went. What can't be known to belong to a backend is dropped.
 *
 * No lock, as in the flow table: see struct flow. A reader looks at `ref` again when it
 * has read the rest, so that what it read is one entry's.
 */
#ifndef TOWPATH_LB_FRAGMENT_H
#define TOWPATH_LB_FRAGMENT_H

#include "net/hash.h"
#include "lb/maps.h"
#include "lb/service.h"
#include "lb/headers.h"

enum fragment_parts {
	FRAGMENT_TRANSPORT = 8,
};

/* Where a packet's entry belongs. */
struct fragment_place {
	struct fragment_set *set;
	__u32 hash; /* goes into `ref` */
	__u32 now;
};

/* IPv6 fragments need not agree on what follows (RFC 8200, 4.5). */
static __always_inline __u8 fragment_protocol(const struct lb_ctx *lb)
{
	return lb->hdr.ip_protocol;
}

static __always_inline struct fragment_place fragment_place(const struct lb_ctx *lb)
{
	const struct flow_key *flow = &lb->pkt.flow;
	__u32 id = bpf_ntohl(lb->hdr.id);
	__u64 pair, keyed;
	__u32 at;

	pair = hash_address(hash_address(flow_seed, &flow->saddr), &flow->daddr);
	keyed = hash_step(hash_step(pair, id), fragment_protocol(lb));
	at = hash_step(pair, id % FRAGMENT_SPREAD) & fragment_mask;
	return (struct fragment_place){
		.set = bpf_map_lookup_elem(&fragments, &at),
		.hash = (keyed >> 32) | 1,
		.now = bpf_ktime_get_ns() >> 20,
	};
}

static __always_inline bool fragment_is(const struct fragment *entry, const struct lb_ctx *lb)
{
	const __u64 *a = (const __u64 *)&entry->saddr, *b = (const __u64 *)&lb->pkt.flow.saddr;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] &&
	       entry->id == lb->hdr.id && entry->family == lb->pkt.flow.family &&
	       entry->ip_protocol == lb->hdr.ip_protocol;
}

/* Another CPU may have left it a moment after `now` was asked for: that is no age at all. */
static __always_inline __u32 fragment_age(const struct fragment *entry, __u32 now)
{
	__u32 age = now - entry->seen;

	return age > (__u32)-16 ? 0 : age;
}

static __always_inline bool fragment_lives(const struct fragment *entry, __u32 now)
{
	return entry->ref && fragment_age(entry, now) < FRAGMENT_LIFE;
}

/* Puts what the first fragment left into the context. False: nothing is known of it. */
__noinline int fragment_find(__u32 slot)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct fragment_place place;

	if (!lb)
		return false;
	place = fragment_place(lb);
	if (!place.set)
		return false;
	for (__u32 way = 0; way < FRAGMENT_WAYS; way++) {
		const struct fragment *entry = &place.set->way[way];
		__u64 ref = *(const volatile __u64 *)&entry->ref;

		if ((__u32)ref != place.hash || !fragment_lives(entry, place.now) ||
		    !fragment_is(entry, lb))
			continue;
		lb->pkt.flow.protocol = entry->protocol;
		lb->pkt.flow.sport = entry->sport;
		lb->pkt.flow.dport = entry->dport;
		lb->checksum_at = entry->checksum_at;
		lb->first_handle = ref >> 32;
		barrier();
		return *(const volatile __u64 *)&entry->ref == ref;
	}
	return false;
}

/*
 * The packet's own entry if there is one, else a dead one, else the oldest. The best so far
 * is kept where the verifier doesn't follow it: it would go through all orders of ages.
 */
static __always_inline struct fragment *fragment_victim(const struct fragment_place *place,
							struct lb_ctx *lb)
{
	volatile __u32 *best = &lb->rank;

	*best = 0;
	for (__u32 way = 0; way < FRAGMENT_WAYS; way++) {
		const struct fragment *entry = &place->set->way[way];
		__u32 age = FRAGMENT_LIFE, rank;

		if ((__u32)entry->ref == place->hash && fragment_is(entry, lb))
			age = FRAGMENT_LIFE + 1;
		else if (fragment_lives(entry, place->now))
			age = fragment_age(entry, place->now);
		rank = age * FRAGMENT_WAYS + (FRAGMENT_WAYS - 1 - way);
		if (rank > *best)
			*best = rank;
	}
	return &place->set->way[FRAGMENT_WAYS - 1 - *best % FRAGMENT_WAYS];
}

/*
 * Where TCP's checksum is, from the beginning of what is in fragments, if the first one ends before
 * it and is to be translated; else 0. Behind an IPv6 fragment header there may be more headers.
 */
static __always_inline __u16 fragment_checksum_at(const struct lb_ctx *lb)
{
	bool v4 = lb->pkt.flow.family == FAMILY_V4;
	__u32 start = v4 ? lb->hdr.at : lb->hdr.id_at + sizeof(__be32);

	if (lb->pkt.flow.protocol != IPPROTO_TCP || lb->hdr.authenticated ||
	    hdr_within(&lb->hdr, &lb->pkt, TCP_CHECKSUM_AT + sizeof(__sum16)))
		return 0;
	return lb->hdr.at + TCP_CHECKSUM_AT - start;
}

/* Has the packet's other fragments follow this one to a backend; handle 0: to the kernel. */
__noinline int fragment_learn(__u32 slot, __u32 handle)
{
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct fragment_place place;
	struct fragment *entry;

	if (!lb || lb->traced)
		return 0;
	place = fragment_place(lb);
	if (!place.set)
		return 0;
	entry = fragment_victim(&place, lb);

	*(volatile __u64 *)&entry->ref = 0;
	entry->saddr = lb->pkt.flow.saddr;
	entry->daddr = lb->pkt.flow.daddr;
	entry->id = lb->hdr.id;
	entry->sport = lb->pkt.flow.sport;
	entry->dport = lb->pkt.flow.dport;
	entry->seen = place.now;
	entry->checksum_at = fragment_checksum_at(lb);
	entry->ip_protocol = lb->hdr.ip_protocol;
	entry->protocol = lb->pkt.flow.protocol;
	entry->family = lb->pkt.flow.family;
	barrier();
	*(volatile __u64 *)&entry->ref = (__u64)handle << 32 | place.hash;
	return 0;
}

static __always_inline int fragment_later(struct lb_ctx *lb)
{
	__u8 protocol = lb->hdr.nexthdr;
	bool has_ports = protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;

	if (lb->pkt.flow.family == FAMILY_V4 && !has_ports && protocol != IPPROTO_AH)
		return VERDICT_PASS_FRAGMENT;
	if (fragment_find(lb->slot)) {
		lb->pkt_flags |= PKT_FRAG_LATER | PKT_NO_LEARN;
		return lb->first_handle ? PARSE_OK : VERDICT_PASS_FRAGMENT;
	}
	if (!has_ports)
		return VERDICT_PASS_FRAGMENT;
	/* The first one went to some backend, or will: any other would never see it whole. */
	return vip_known(lb->slot) ? VERDICT_DROP_FRAGMENT : VERDICT_PASS_FRAGMENT;
}

/* Gives a fragment the ports of its packet. Those that can't be read pass as they came. */
static __always_inline int fragment_parse(struct xdp_md *ctx, struct lb_ctx *lb)
{
	int result;

	lb->hdr.at = lb->pkt.l3_offset;
	result = read_ip(ctx, lb->slot);
	lb->pkt.l4_offset = lb->hdr.at - lb->pkt.l3_offset;
	if (result == VERDICT_PASS_FRAGMENT && lb->hdr.offset && hdr_within(&lb->hdr, &lb->pkt, 0))
		return fragment_later(lb);
	/* The least that fragments but the last can have, RFC 791. */
	if (result != PARSE_OK || !read_transport(ctx, lb, FRAGMENT_TRANSPORT))
		return VERDICT_PASS_FRAGMENT;
	lb->pkt_flags |= PKT_FRAG_FIRST;
	if (lb->hdr.authenticated)
		lb->pkt_flags |= PKT_AUTHENTICATED;
	return PARSE_OK;
}

#endif
