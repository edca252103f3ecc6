/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Tells user space the time by which flow entries are dated: the kernel shows
 * jiffies to programs only. Never attached, run as a test.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Returns the low 32 bits of jiffies. */
SEC("xdp")
int jiffies(struct xdp_md *ctx)
{
	return bpf_jiffies64();
}
