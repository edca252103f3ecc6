/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer's maps and no program. User space makes them by loading this, and then
 * loads programs of any kind over them: each includes the same headers.
 */
#include <linux/bpf.h>

#include "abi/trace.h"
#include "lb/maps.h"
#include "snat/maps.h"

/*
 * Of each service, by its index, what it was when a change of it was through: no packet's concern,
 * but that of the next process (native/table_marks.c).
 */
ARRAY_MAP(table_marks, __u64);

char LICENSE[] SEC("license") = "Dual BSD/GPL";
