/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Look-ups in the tables of services, for whatever it is that asks: packets or sockets. */
#ifndef TOWPATH_LB_LOOKUP_H
#define TOWPATH_LB_LOOKUP_H

#include "net/hash.h"
#include "net/parse.h"
#include "lb/maps.h"

/* The lengths of prefixes that have ports. */
static __always_inline __u64 vip_lengths_with_ports(bool v4)
{
	__u32 zero = 0;
	struct vip_lengths *lengths = bpf_map_lookup_elem(&vip_lengths, &zero);

	return lengths ? *(volatile __u64 *)&lengths->ports[v4 ? VIP_V4 : VIP_V6] : 0;
}

/* Port, protocol and family in one step. */
static __always_inline __u32 vip_tail(const struct vip_key *key)
{
	return *(const wide32 *)&key->port;
}

/* Of a VIP, for its place in the index. */
static __always_inline __u64 hash_vip(const struct vip_key *key)
{
	__u64 tail = vip_tail(key);
	__u64 state = hash_step(0, key->addr.word[3] | tail << 32);

	if ((key->family & ~VIP_PREFIX) == FAMILY_V6)
		state = hash_step(
			hash_step(state, key->addr.word[0] | (__u64)key->addr.word[1] << 32),
			key->addr.word[2]);
	return state;
}

static __always_inline bool vip_equal(const struct vip_key *a, const struct vip_key *key)
{
	if (vip_tail(a) != vip_tail(key) || a->addr.word[3] != key->addr.word[3])
		return false;
	return key->family == FAMILY_V4 ||
	       (a->addr.word[0] == key->addr.word[0] && a->addr.word[1] == key->addr.word[1] &&
		a->addr.word[2] == key->addr.word[2]);
}

/* Returns what the slot of a key holds, 0 if there is none. */
static __always_inline __u32 vip_find(const struct vip_key *key)
{
	__u32 first = hash_vip(key) >> 32;

	for (__u32 i = 0; i < VIP_PROBES; i++) {
		__u32 at = (first + i) & vip_mask;
		struct vip_slot *slot = bpf_map_lookup_elem(&vips, &at);

		if (!slot)
			return 0;
		if (vip_equal(&slot->key, key) && slot->service)
			return slot->service;
		if (slot->key.family == FAMILY_NONE)
			return 0;
	}
	return 0;
}

/* Keeps the first `length` bits of an address, whose first word is `at` bits in. */
static __always_inline __be32 mask_word(__be32 word, __u32 length, __u32 at)
{
	if (length >= at + 32)
		return word;
	return length <= at ? 0 : word & bpf_htonl(~0U << (at + 32 - length));
}

static __always_inline void mask_key(struct vip_key *key, const struct address *addr, bool v4,
				     __u32 length)
{
	key->port = bpf_htons(length);
	if (v4)
		length += 96;
	key->addr.word[0] = mask_word(addr->word[0], length, 0);
	key->addr.word[1] = mask_word(addr->word[1], length, 32);
	key->addr.word[2] = mask_word(addr->word[2], length, 64);
	key->addr.word[3] = mask_word(addr->word[3], length, 96);
}

/* Returns the service of a port on a page of ports, 0 if none. */
static __always_inline __u32 port_lookup(__u32 page_at, __u32 port)
{
	struct port_page *page = bpf_map_lookup_elem(&port_pages, &page_at);
	__u32 entry;

	/* Before 6.3 the verifier forgets a number's range on its way through the stack. */
	barrier_var(port);
	entry = page ? page->entry[(port >> 8) & 0xff] : 0;

	if (entry & PORT_WHOLE || !entry)
		return entry & ~PORT_WHOLE;
	page = bpf_map_lookup_elem(&port_pages, &entry);
	return page ? page->entry[port & 0xff] : 0;
}

/* The lengths of all VIPs. */
static __always_inline __u64 vip_lengths_known(bool v4)
{
	__u32 zero = 0;
	struct vip_lengths *lengths = bpf_map_lookup_elem(&vip_lengths, &zero);

	return lengths ? *(volatile __u64 *)&lengths->known[v4 ? VIP_V4 : VIP_V6] : 0;
}

struct maglev_table {
	__u32 base;
	__u32 size;
};

static __always_inline struct maglev_table service_table(const struct service *service)
{
	__u64 word = *(const volatile __u64 *)&service->table;

	return (struct maglev_table){ .base = word, .size = word >> 32 };
}

/* Returns the handle in the slot that the flow hashes to, 0 if there is none. */
static __always_inline __u32 maglev_lookup(struct maglev_table table, __u32 slot)
{
	__u32 at = table.base + slot, line_at = at / MAGLEV_LINE;
	struct maglev_line *line = table.size ? bpf_map_lookup_elem(&maglev, &line_at) : NULL;

	return line ? line->handle[at % MAGLEV_LINE] : 0;
}

/* The handle of the backend of a service that has a server's id, 0 if nobody has it. */
static __always_inline __u32 quic_find(__u32 service, __u64 id)
{
	__u32 first = hash_step(hash_step(0, id), service) >> 32;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < QUIC_PROBES; i++) {
		__u32 at = (first + i) & quic_mask;
		const volatile struct quic_server *slot = bpf_map_lookup_elem(&quic_servers, &at);

		if (!slot)
			return 0;
		if (likely(slot->id == id && slot->service == service))
			return slot->handle;
		if (!slot->service)
			return 0;
	}
	return 0;
}

/* The backend of a handle, NULL if its index has been given to another since. */
static __always_inline struct backend *backend_of(__u32 handle)
{
	__u32 index = handle & ((1 << HANDLE_INDEX_BITS) - 1);
	struct backend *backend;

	if (!handle)
		return NULL;
	backend = bpf_map_lookup_elem(&backends, &index);
	return backend && backend->handle == handle ? backend : NULL;
}

/* Whether new flows go there: it is then in the service's table, or about to be. */
static __always_inline bool takes_flows(const struct backend *backend)
{
	return backend->state == BACKEND_ACTIVE && backend->weight;
}

/* The hash that a new flow is given a backend by. `hash`: the flow's own. */
static __always_inline __u64 service_hash(const struct service *service,
					  const struct flow_key *flow, __u64 hash)
{
	__u32 flags = service->flags;

	if (likely(!(flags & (SERVICE_HASH_CLIENT | SERVICE_HASH_PORT))))
		return hash;
	return flags & SERVICE_HASH_CLIENT ? hash_client(flow, hash_seed)
					   : hash_port(flow->dport, hash_seed);
}

#endif
