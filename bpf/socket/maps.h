/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What belongs to sockets alone: their notes, counters, and whom this is for. */
#ifndef TOWPATH_SOCKET_MAPS_H
#define TOWPATH_SOCKET_MAPS_H

#include "abi/socket.h"
#include "lb/array_map.h"
#include "lb/maps.h"

/* Of connected sockets. It goes with the socket: nothing is forgotten, nothing has to be freed. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_note);
} socket_notes SEC(".maps");

/* Of those that send without having connected. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_peers);
} socket_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct socket_mptcp_key);
	__type(value, struct socket_mptcp);
} socket_mptcp SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* id of a cgroup */
	__type(value, __u32);
} socket_off SEC(".maps");

ARRAY_MAP(socket_scopes, struct socket_scope);
ARRAY_MAP(socket_states, struct socket_state);
ARRAY_MAP(socket_cpus, struct socket_cpu);
/* Rows of each CPU: cpu * services_max + index. One more than there are CPUs: what came along. */
ARRAY_MAP(socket_service_cpus, struct socket_service_cpu);
ARRAY_MAP(socket_backend_cpus, struct socket_backend_cpu);
/* Hashes of what the services and backends of these indexes are; 0 = not known. */
ARRAY_MAP(socket_service_ids, __u64);
ARRAY_MAP(socket_backend_ids, __u64);

/* Set before loading. */
const volatile __u32 socket_epoch = 0;	     /* of the tables that handles are of */
const volatile __u32 socket_set_retval = 0;  /* whether the kernel lets errors be chosen */
const volatile __u32 socket_refuse_with = 0; /* errno where a service has no backend, 0 = EPERM */
const volatile __u32 socket_has_mptcp = 0;   /* whether the kernel has MPTCP */
const volatile __u32 socket_tells_mptcp = 0; /* and tells which sockets are MPTCP's */

#endif
