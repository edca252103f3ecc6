/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer in a jiffy that doesn't end, so that a next hop that is known stays so until the
 * test says otherwise; and its two ways apart. As in told.bpf.c the test tells the device.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

volatile __u32 told_ifindex;

#define ingress_ifindex rx_queue_index * 0 + told_ifindex
#define bpf_jiffies64() 0x1000000

#include "lb/lb.bpf.c"

/* What is in doubt is aborted, which the load balancer itself does with no packet. */
SEC("xdp")
int fast_alone(struct xdp_md *ctx)
{
	int action = fast_way(ctx);

	return action >= 0 ? action : XDP_ABORTED;
}

SEC("xdp")
int general_alone(struct xdp_md *ctx)
{
	__u32 slot;
	int action = general_parse(ctx, &slot);

	return action >= 0 ? action : general_flow(ctx, slot, FLOW_PARSED);
}
