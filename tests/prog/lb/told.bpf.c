/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer itself, for kernels whose test runs take no context and have every packet come
 * in on the loopback device: on which device it came is told by the test.
 */
#include <linux/bpf.h>

volatile __u32 told_ifindex;

/* In the one place where the context is asked for it. */
#define ingress_ifindex rx_queue_index * 0 + told_ifindex

#include "lb/lb.bpf.c"
