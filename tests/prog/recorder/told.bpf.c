/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* As told.bpf.c, of the load balancer with a recorder. */
#include <linux/bpf.h>

volatile __u32 told_ifindex;

/* In the places where the context is asked for it. */
#define ingress_ifindex rx_queue_index * 0 + told_ifindex

#include "recorder/recorder.bpf.c"
