/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A table that user space maps; see lb/maps.h. */
#ifndef TOWPATH_LB_ARRAY_MAP_H
#define TOWPATH_LB_ARRAY_MAP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Its size is a placeholder that user space sets. */
#define ARRAY_MAP(name, value_type)                \
	struct {                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);  \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, 1);            \
		__type(key, __u32);                \
		__type(value, value_type);         \
	} name SEC(".maps")

#endif
