/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What stands in a dispatcher for a program of Towpath's: it calls whatever is
 * in its slot. So the program can be exchanged, and test-run, as anywhere else,
 * while dispatchers come and go around this one. Of the two that are here one is
 * loaded: others see its name.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"
#include "abi/dispatcher.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Here, since dispatchers have no room for it. */
BTF_KEEP(enum dispatcher_limits);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} slot SEC(".maps");

/*
 * The slot is empty once nobody holds it any more. The packet passes then: where this
 * is the dispatcher's only program, nothing reads what it returns but the kernel.
 */
static __always_inline int call(struct xdp_md *ctx)
{
	bpf_tail_call_static(ctx, &slot, 0);
	return XDP_PASS;
}

/* The load balancer. */
SEC("freplace")
int towpath(struct xdp_md *ctx)
{
	return call(ctx);
}

/* The program on a backend. */
SEC("freplace")
int towpath_decap(struct xdp_md *ctx)
{
	return call(ctx);
}
