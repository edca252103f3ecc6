/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer's maps and no program. User space makes them by loading this, and then
 * loads programs of any kind over them: each includes the same headers.
 */
#include <linux/bpf.h>

#include "abi/trace.h"
#include "lb/maps.h"
#include "snat/maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
