/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Asks the kernel's FIB on behalf of user space, which wants to know what this
 * kernel's bpf_fib_lookup answers. Never attached: BPF_PROG_TEST_RUN gives it a
 * "packet" that is the question, and gets the answer back in its place.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"

/* The only record that crosses here, and no other program's business: hence not in abi/. */
struct fib_question {
	__u32 family; /* AF_INET or AF_INET6 */
	__u32 flags;  /* BPF_FIB_LOOKUP_* */
	__be32 daddr; /* of IPv4; IPv6 asks for :: */
	/* Asked with, and what the kernel made of it. */
	__u32 ifindex; /* in on which device, out of which */
	__be32 saddr;
	/* Answers. */
	__u32 mtu;
	__s32 result; /* BPF_FIB_LKUP_RET_* or a negative error number */
};
BTF_KEEP(struct fib_question);

SEC("xdp")
int probe_fib(struct xdp_md *ctx)
{
	struct fib_question *ask = (void *)(long)ctx->data;
	struct bpf_fib_lookup fib = {};

	if ((void *)(ask + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	fib.family = ask->family;
	fib.ifindex = ask->ifindex;
	fib.ipv4_src = ask->saddr;
	fib.ipv4_dst = ask->daddr;
	ask->result = bpf_fib_lookup(ctx, &fib, sizeof(fib), ask->flags);
	ask->ifindex = fib.ifindex;
	ask->saddr = fib.ipv4_src;
	ask->mtu = fib.mtu_result;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
