/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a destination to its service, and from a flow to a backend by Maglev. */
#ifndef TOWPATH_SERVICE_H
#define TOWPATH_SERVICE_H

#include "hash.h"
#include "maps.h"
#include "parse.h"

static __always_inline bool vip_equal(const struct vip_key *a, const struct vip_key *b)
{
	if (a->addr.word[3] != b->addr.word[3] ||
	    *(const __u32 *)&a->port != *(const __u32 *)&b->port)
		return false;
	return a->family == FAMILY_V4 ||
	       (a->addr.word[0] == b->addr.word[0] && a->addr.word[1] == b->addr.word[1] &&
		a->addr.word[2] == b->addr.word[2]);
}

/* Returns the index of the service, 0 if the destination is no VIP. */
static __always_inline __u32 vip_lookup(const struct flow_key *flow)
{
	struct vip_key key = {
		.addr = flow->daddr,
		.port = flow->dport,
		.protocol = flow->protocol,
		.family = flow->family,
	};
	__u32 first = hash_vip(&key) >> 32;

	for (__u32 i = 0; i < VIP_PROBES; i++) {
		__u32 at = (first + i) & vip_mask;
		struct vip_slot *slot = bpf_map_lookup_elem(&vips, &at);

		if (!slot || slot->key.family == FAMILY_NONE)
			return 0;
		if (vip_equal(&slot->key, &key) && slot->service)
			return slot->service;
	}
	return 0;
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

/* The backend of a handle, NULL if its index has been given to another since. */
static __always_inline struct backend *backend_of(__u32 handle)
{
	__u32 index = handle & ((1 << HANDLE_INDEX_BITS) - 1);
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return handle && backend && backend->handle == handle ? backend : NULL;
}

#endif
