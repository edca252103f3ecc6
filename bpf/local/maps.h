/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* By which devices flows to backends on this node may be answered. */
#ifndef TOWPATH_LOCAL_MAPS_H
#define TOWPATH_LOCAL_MAPS_H

#include "socket/packet_maps.h"

/* Those that have the program for answers, or the device below them has it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); /* ifindex */
	__type(value, __u32);
} local_devices SEC(".maps");

/* Those that should: flows were refused for the want of it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); /* ifindex */
	__type(value, __u32);
} local_wanted SEC(".maps");

#endif
