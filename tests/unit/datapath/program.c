/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the program does with its tables, as a library: the same headers, over
 * arrays of the process that calls.
 */
#include <sys/cdefs.h>

#include "lb/maps.h"
#include "net/parse.h"

/* The tables that a destination is looked up in. */
struct index {
	struct vip_slot *vips;
	struct vip_lengths *lengths;
	struct port_page *pages;
	__u32 vips_len, pages_len;
};

static struct {
	struct index index;
	struct maglev_line *maglev;
	struct backend *backends;
	struct quic_server *servers;
	__u32 maglev_len, backends_len, servers_len;
	struct lb_ctx *context;
} memory;

static void *array_element(const void *map, const void *key);
#define bpf_map_lookup_elem array_element
#define vip_mask	    (memory.index.vips_len - 1)
#define quic_mask	    (memory.servers_len - 1)
#include "lb/service.h"

static void *array_element(const void *map, const void *key)
{
	__u32 at = *(const __u32 *)key;

	if (map == &vips)
		return at < memory.index.vips_len ? &memory.index.vips[at] : NULL;
	if (map == &vip_lengths)
		return memory.index.lengths;
	if (map == &port_pages)
		return at < memory.index.pages_len ? &memory.index.pages[at] : NULL;
	if (map == &contexts)
		return memory.context;
	if (map == &quic_servers)
		return at < memory.servers_len ? &memory.servers[at] : NULL;
	if (map == &maglev)
		return at < memory.maglev_len ? &memory.maglev[at] : NULL;
	return at < memory.backends_len ? &memory.backends[at] : NULL;
}

/* Returns the index of the service that a packet with this destination is for, or 0. */
__u32 program_service(const struct index *index, const struct vip_key *key)
{
	struct lb_ctx context = { .pkt.flow = {
					  .daddr = key->addr,
					  .dport = key->port,
					  .protocol = key->protocol,
					  .family = key->family,
				  } };

	memory.index = *index;
	memory.context = &context;
	return service_lookup(&context, service_exact(&context.pkt.flow));
}

/* Returns the handle that Maglev gives a flow with this hash, 0 for none or a stale one. */
__u32 program_handle(const struct service *service, struct maglev_line *lines, __u32 lines_len,
		     struct backend *rows, __u32 rows_len, __u32 hash)
{
	struct maglev_table table = service_table(service);
	struct backend *backend;

	memory.maglev = lines;
	memory.maglev_len = lines_len;
	memory.backends = rows;
	memory.backends_len = rows_len;
	backend = backend_of(maglev_lookup(table, hash_scale(hash, table.size)));
	return backend ? backend->handle : 0;
}

/* Returns the handle of whoever has a server's id, or 0. */
__u32 program_server(struct quic_server *slots, __u32 slots_len, __u32 service, __u64 id)
{
	memory.servers = slots;
	memory.servers_len = slots_len;
	return quic_find(service, id);
}

__u64 program_hash_vip(const struct vip_key *key)
{
	return hash_vip(key);
}

__u64 program_hash_flow(const struct flow_key *flow, __u64 seed)
{
	return hash_flow(flow, seed);
}
