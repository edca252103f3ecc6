/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: the first one of a packet has ports and is balanced like any packet, those
 * that follow go where it went. What can't be known to belong to a backend is dropped.
 *
 * No lock, as in the flow table: see struct flow. A reader looks at `ref` again when it
 * has read the rest, so that what it read is one entry's.
 */
#ifndef TOWPATH_FRAGMENT_H
#define TOWPATH_FRAGMENT_H

#include "net/hash.h"
#include "lb/maps.h"
#include "lb/service.h"
#include "lb/headers.h"

/* Where a packet's entry belongs. */
struct fragment_place {
	struct fragment_set *set;
	__u32 hash; /* goes into `ref` */
	__u32 now;
};

/* IPv6 fragments need not agree on what follows (RFC 8200, 4.5). */
static __always_inline __u8 fragment_protocol(const struct work *w)
{
	return w->pkt.flow.family == FAMILY_V4 ? w->hdr.nexthdr : 0;
}

static __always_inline struct fragment_place fragment_place(const struct work *w)
{
	const struct flow_key *flow = &w->pkt.flow;
	__u32 id = bpf_ntohl(w->hdr.id);
	__u64 pair, keyed;
	__u32 at;

	pair = hash_address(hash_address(flow_seed, &flow->saddr), &flow->daddr);
	keyed = hash_step(hash_step(pair, id), fragment_protocol(w));
	at = hash_step(pair, id % FRAGMENT_SPREAD) & fragment_mask;
	return (struct fragment_place){
		.set = bpf_map_lookup_elem(&fragments, &at),
		.hash = (keyed >> 32) | 1,
		.now = bpf_ktime_get_ns() >> 20,
	};
}

static __always_inline bool fragment_is(const struct fragment *entry, const struct work *w)
{
	const __u64 *a = (const __u64 *)&entry->saddr, *b = (const __u64 *)&w->pkt.flow.saddr;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] &&
	       entry->id == w->hdr.id && entry->family == w->pkt.flow.family &&
	       (entry->family != FAMILY_V4 || entry->protocol == w->hdr.nexthdr);
}

static __always_inline bool fragment_lives(const struct fragment *entry, __u32 now)
{
	return entry->ref && now - entry->seen < FRAGMENT_LIFE;
}

/* Puts what the first fragment left into the flow and the context. False: nothing is known of it. */
__noinline int fragment_find(__u32 row)
{
	struct work *w = work_of(row);
	struct fragment_place place;

	if (!w)
		return false;
	place = fragment_place(w);
	if (!place.set)
		return false;
	for (__u32 way = 0; way < FRAGMENT_WAYS; way++) {
		const struct fragment *entry = &place.set->way[way];
		__u64 ref = *(const volatile __u64 *)&entry->ref;

		if ((__u32)ref != place.hash || !fragment_lives(entry, place.now) ||
		    !fragment_is(entry, w))
			continue;
		w->pkt.flow.protocol = entry->protocol;
		w->pkt.flow.sport = entry->sport;
		w->pkt.flow.dport = entry->dport;
		w->first_handle = ref >> 32;
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
							struct work *w)
{
	volatile __u32 *best = &w->rank;

	*best = 0;
	for (__u32 way = 0; way < FRAGMENT_WAYS; way++) {
		const struct fragment *entry = &place->set->way[way];
		__u32 age = FRAGMENT_LIFE, rank;

		if ((__u32)entry->ref == place->hash && fragment_is(entry, w))
			age = FRAGMENT_LIFE + 1;
		else if (fragment_lives(entry, place->now))
			age = place->now - entry->seen;
		rank = age * FRAGMENT_WAYS + (FRAGMENT_WAYS - 1 - way);
		if (rank > *best)
			*best = rank;
	}
	return &place->set->way[FRAGMENT_WAYS - 1 - *best % FRAGMENT_WAYS];
}

/* Has the packet's other fragments follow this one to a backend; handle 0: to the kernel. */
__noinline int fragment_learn(__u32 row, __u32 handle)
{
	struct work *w = work_of(row);
	struct fragment_place place;
	struct fragment *entry;

	if (!w || w->traced)
		return 0;
	place = fragment_place(w);
	if (!place.set)
		return 0;
	entry = fragment_victim(&place, w);

	*(volatile __u64 *)&entry->ref = 0;
	entry->saddr = w->pkt.flow.saddr;
	entry->daddr = w->pkt.flow.daddr;
	entry->id = w->hdr.id;
	entry->sport = w->pkt.flow.sport;
	entry->dport = w->pkt.flow.dport;
	entry->seen = place.now;
	entry->protocol = w->pkt.flow.protocol;
	entry->family = w->pkt.flow.family;
	barrier();
	*(volatile __u64 *)&entry->ref = (__u64)handle << 32 | place.hash;
	return 0;
}

static __always_inline int fragment_later(struct work *w)
{
	__u8 protocol = w->hdr.nexthdr;

	if (w->pkt.flow.family == FAMILY_V4 && protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return VERDICT_PASS_FRAGMENT;
	if (fragment_find(w->row)) {
		w->special |= SPECIAL_LATER | SPECIAL_QUIET;
		return w->first_handle ? PARSE_OK : VERDICT_PASS_FRAGMENT;
	}
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return VERDICT_PASS_FRAGMENT;
	/* The first one went to some backend, or will: any other would never see it whole. */
	return vip_known(w->row) ? VERDICT_DROP_FRAGMENT : VERDICT_PASS_FRAGMENT;
}

/* What a first fragment's transport header says, of which all is there. False: it has none. */
static __always_inline bool fragment_transport(struct xdp_md *ctx, struct work *w)
{
	bool tcp = w->hdr.nexthdr == IPPROTO_TCP;
	struct cursor c = cursor_of(ctx);
	struct tcphdr *header;

	if (!hdr_ports(&w->hdr, &w->pkt, c, tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr),
		       &w->pkt.flow))
		return false;
	if (!tcp)
		return true;
	if (!hdr_cursor(&w->hdr, &c))
		return false;
	header = cursor_take(&c, struct tcphdr);
	if (!header)
		return false;
	w->pkt.tcp_flags = ((__u8 *)header)[TCP_FLAGS_AT];
	return true;
}

/* Gives a fragment the ports of its packet. Those that can't be read pass as they came. */
static __always_inline int fragment_parse(struct xdp_md *ctx, struct work *w)
{
	int result;

	w->hdr.at = w->pkt.l3_offset;
	result = read_ip(ctx, w->row);
	w->pkt.l4_offset = w->hdr.at - w->pkt.l3_offset;
	if (result == VERDICT_PASS_FRAGMENT && w->hdr.offset && hdr_within(&w->hdr, &w->pkt, 0))
		return fragment_later(w);
	if (result != PARSE_OK || !fragment_transport(ctx, w))
		return VERDICT_PASS_FRAGMENT;
	w->special |= SPECIAL_FIRST;
	return PARSE_OK;
}

#endif
