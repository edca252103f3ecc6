/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Passes every packet.
 *
 * A veth device takes frames that its peer has sent by XDP_TX or redirect only
 * while it polls its own ring (NAPI), and what makes it poll is an XDP program
 * of its own. This is the smallest such program: on the far end of a veth whose
 * near end balances.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
