/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decapsulating end, for backends: takes the outer header off IPIP, IP6IP6,
 * 4in6 and 6in4 packets sent to the addresses in `addresses`, with GRE, FOU or GUE
 * between if that is asked for, and hands what was inside to the kernel, as if it had
 * arrived on the wire like that.
 *
 * parse the outer header -> look its destination up -> check it and the inner
 * header -> merge the ECN fields -> move the link header over -> pass up.
 *
 * Nothing is written before the last check has passed: a packet that is passed
 * untouched is passed as it came.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/base.h"
#include "abi/decap.h"
#include "decap/unwrap.h"
#include "net/parse.h"
#include "net/pull.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct decap_key);
	__type(value, struct decap_counters);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decap_cpu);
} verdicts SEC(".maps");

__noinline int decapsulate(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);
	struct outer_header outer = {};
	struct decap_counters *counters;
	__u32 verdict;
	void *frame = c.pos, *header;
	__u32 length = 0;

	if (!parse_outer(ctx, &c, &header, &outer))
		return DECAP_PASS_OTHER;
	counters = bpf_map_lookup_elem(&addresses, &outer.key);
	if (!counters)
		return DECAP_PASS_OTHER;
	if (outer.fragment)
		return DECAP_PASS_FRAGMENT;
	if (outer.malformed)
		return DECAP_DROP_MALFORMED;
	verdict = unwrap(ctx, &c, frame, header, &outer, 0, &length);
	if (verdict == DECAP_UNWRAPPED) {
		counters->packets++;
		counters->bytes += length;
	}
	return verdict;
}

SEC("xdp")
int towpath_decap(struct xdp_md *ctx)
{
	__u64 verdict = decapsulate(ctx);
	__u32 zero = 0;
	struct decap_cpu *stats = bpf_map_lookup_elem(&verdicts, &zero);

	/* Headers may lie behind the first fragment of the frame. */
	if (xdp_fragments &&
	    unlikely(verdict == DECAP_PASS_OTHER || verdict == DECAP_DROP_MALFORMED) &&
	    frame_in_fragments(ctx) && pull(ctx, PULL_HEADERS))
		verdict = decapsulate(ctx);
	/* In one register, or Linux 5.10 knows the bounds of a copy only. */
	barrier_var(verdict);
	if (stats && verdict < DECAP_MAX)
		stats->packets[verdict]++;
	return verdict < DECAP_DROP_MALFORMED ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
