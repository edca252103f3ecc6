/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A dispatcher of version 3 (abi/dispatcher.h).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi/dispatcher.h"

/* All of .rodata: readers go by its size. */
const volatile struct dispatcher_config_v3 conf;

#include "dispatcher/chain.h"

__uint(dispatcher_version, 3) SEC("xdp_metadata");
