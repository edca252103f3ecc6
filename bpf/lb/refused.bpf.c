/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts what the kernel refuses of the frames that XDP has sent, and tells nobody else: at the
 * tracepoints that it has for that. The load balancer has counted them as sent by then.
 */
#include "lb/maps.h"
#include "snat/maps.h"

#include <bpf/bpf_core_read.h>

/* As much of the kernel's own types as is read here; where it lies is found out when this is loaded. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
};
#pragma clang attribute pop

/* Set before loading: the inode number of the network namespace. */
const volatile __u32 refused_netns = 0;

static __always_inline __u32 index_of(struct net_device *device)
{
	return BPF_CORE_READ(device, ifindex);
}

/* Whether frames that come in on a device are the load balancer's. */
static __always_inline bool is_ours(struct net_device *device)
{
	__u32 ifindex = index_of(device);
	struct egress_device *known;

	if (BPF_CORE_READ(device, nd_net.net, ns.inum) != refused_netns)
		return false;
	known = bpf_map_lookup_elem(&egress_devices, &ifindex);
	return known && known->flags & EGRESS_OURS;
}

static __always_inline void count(__u32 ifindex, int error, __u64 frames)
{
	struct refusal key = { .ifindex = ifindex, .error = -error };
	__u64 *there = bpf_map_lookup_elem(&refusals, &key);

	if (!there) {
		/* If another CPU was first, its number is there to be added to. */
		if (!bpf_map_update_elem(&refusals, &key, &frames, BPF_NOEXIST))
			return;
		there = bpf_map_lookup_elem(&refusals, &key);
	}
	/* Relaxed, or clang 20 and newer fetch it all the same, which kernels before 5.12 can't. */
	if (there)
		__atomic_fetch_add(there, frames, __ATOMIC_RELAXED);
}

/*
 * A frame that can't even be queued for the device it was redirected to: from, program, target,
 * error, kind and id of a map, index.
 */
SEC("raw_tp/xdp_redirect_err")
int refused_redirect(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_ours((void *)ctx->args[0]))
		count(ctx->args[6], ctx->args[3], 1);
	return 0;
}

/* The same before 5.13: a map in the place of its kind and id. */
SEC("raw_tp/xdp_redirect_err")
int refused_redirect5(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_ours((void *)ctx->args[0]))
		count(ctx->args[5], ctx->args[3], 1);
	return 0;
}

/* Frames that were queued, and that its driver doesn't take: from, to, sent, not sent, error. */
SEC("raw_tp/xdp_devmap_xmit")
int refused_transmit(struct bpf_raw_tracepoint_args *ctx)
{
	int frames = ctx->args[3];

	if (frames > 0 && is_ours((void *)ctx->args[0]))
		count(index_of((void *)ctx->args[1]), ctx->args[4], frames);
	return 0;
}

/* A frame that can't go back by XDP_TX: device, program, action. */
SEC("raw_tp/xdp_exception")
int refused_tx(struct bpf_raw_tracepoint_args *ctx)
{
	struct net_device *device = (void *)ctx->args[0];

	if (ctx->args[2] == XDP_TX && is_ours(device))
		count(index_of(device), 0, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
