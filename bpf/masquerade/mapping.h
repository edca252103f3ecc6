/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Endpoint-independent mapping (RFC 4787, REQ-1): whose a port is. */
#ifndef TOWPATH_MASQUERADE_MAPPING_H
#define TOWPATH_MASQUERADE_MAPPING_H

#include "masquerade/table.h"

static __always_inline void masq_endpoint(const struct masq_work *w, __u32 source,
					  struct masquerade_endpoint *key)
{
	key->address = *(const struct address *)&w->p.to;
	key->source = source;
	key->port = w->search.port;
	key->protocol = w->p.flow.protocol;
	key->family = w->p.flow.family;
}

static __always_inline bool masq_maps_client(const struct masquerade_mapping *m,
					     const struct masq_work *w)
{
	return m->client_port == w->p.flow.sport && address_equal(&m->client, &w->p.flow.saddr);
}

/* Until when a mapping is its client's, if nothing more of it is seen. */
static __always_inline __u16 masq_mapping_until(const struct masq_work *w)
{
	return w->search.now + (w->p.flow.protocol == IPPROTO_TCP ? nat_tcp_open : nat_udp_open);
}

/* Has the mapping of the candidate, or of the flow that was found, live on. */
__noinline int masq_mapping_seen(__u32 source)
{
	struct masq_work *w = masq_work();
	struct masquerade_endpoint key;
	struct masquerade_mapping *m;

	if (!w)
		return 0;
	masq_endpoint(w, source, &key);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	if (m && masq_maps_client(m, w)) {
		m->seen = w->search.now;
		m->until = masq_mapping_until(w);
	}
	return 0;
}

/* Whether the candidate is already the client's. */
static __always_inline bool masq_is_mapped(struct masq_work *w, __u32 source)
{
	struct masquerade_endpoint key;
	struct masquerade_mapping *m;

	masq_endpoint(w, source, &key);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	return m && masq_maps_client(m, w) && !masq_mapping_over(m, w->search.now);
}

/* Makes the candidate the client's. False: it is another's. */
static __always_inline bool masq_claim(struct masq_work *w, __u32 source, bool evict)
{
	struct masquerade_endpoint key;
	struct masquerade_mapping mine = {}, *m;

	masq_endpoint(w, source, &key);
	mine.client = w->p.flow.saddr;
	mine.client_port = w->p.flow.sport;
	mine.seen = w->search.now;
	mine.until = masq_mapping_until(w);
	m = bpf_map_lookup_elem(&masq_mappings, &key);
	if (!m)
		return !bpf_map_update_elem(&masq_mappings, &key, &mine, BPF_NOEXIST);
	if (masq_maps_client(m, w)) {
		m->seen = mine.seen;
		m->until = mine.until;
		return true;
	}
	if (!masq_mapping_over(m, w->search.now) &&
	    !(evict && nat_age(w->search.now, m->seen) > nat_udp_new))
		return false;
	return !bpf_map_update_elem(&masq_mappings, &key, &mine, BPF_ANY);
}

/* The candidate that is the client's already; NAT_TRIES: none is. */
__noinline int masq_mapped_candidate(__u32 source)
{
	struct masq_work *w = masq_work();

	if (!w)
		return NAT_TRIES;
	for (__u32 i = 0; i < NAT_TRIES; i++) {
		masq_candidate(w, i);
		if (masq_is_mapped(w, source))
			return i;
	}
	return NAT_TRIES;
}

#endif
