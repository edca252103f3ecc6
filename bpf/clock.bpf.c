/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Tells the time as programs have it. Jiffies are nowhere else to be read by every
 * kernel's user space, and a flow's `seen` is in them. Never attached: a test run
 * gives its result.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* The low 32 bits of jiffies, in place of an action. */
SEC("xdp")
int jiffies(struct xdp_md *ctx)
{
	return bpf_jiffies64();
}
