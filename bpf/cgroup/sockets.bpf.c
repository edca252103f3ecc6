/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a socket knows of its cgroup. Before 5.15 (8520e224f547) one word had either that or the tag
 * of version 1's net_cls and net_prio. Never attached: BPF_PROG_TEST_RUN asks.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct sock_cgroup_data {
	void *cgroup;
} __attribute__((preserve_access_index));

SEC("tc")
int has_its_own_word(struct __sk_buff *skb)
{
	return bpf_core_field_exists(((struct sock_cgroup_data *)0)->cgroup);
}

char _license[] SEC("license") = "Dual BSD/GPL";
