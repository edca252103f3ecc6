/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether programs that are attached to a cgroup run for what is in it: this one is attached there
 * while a process within connects to an address that nobody else uses. It changes nothing.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	LEVELS = 64,
};

/* One: how often it has run for that process. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

/* The numbers of the cgroups that the process was in, by how far below the machine's root. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEVELS);
	__type(key, __u32);
	__type(value, __u64);
} ancestors SEC(".maps");

/* Where the process connects to. */
const volatile __be32 awaited_address = 0;
const volatile __u16 awaited_port = 0; /* in host byte order */

static __always_inline void note_ancestors(void)
{
	__u32 level;
	__u64 *noted;

	for (level = 0; level < LEVELS; level++) {
		__u32 key = level;

		noted = bpf_map_lookup_elem(&ancestors, &key);
		if (noted)
			*noted = bpf_get_current_ancestor_cgroup_id(level);
	}
}

SEC("cgroup/connect4")
int towpath_witness(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	__u64 *number;

	if (ctx->user_ip4 != awaited_address || ctx->user_port != bpf_htons(awaited_port))
		return 1;
	note_ancestors();
	number = bpf_map_lookup_elem(&calls, &zero);
	if (number)
		/* Relaxed: else newer compilers fetch what was there, which Linux 5.10 can't. */
		__atomic_fetch_add(number, 1, __ATOMIC_RELAXED);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
