/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is counted of a packet of a service: for the service, and for its backend. */
#ifndef TOWPATH_LB_COUNTERS_H
#define TOWPATH_LB_COUNTERS_H

#include "lb/maps.h"
#include "lb/context.h"

_Static_assert(VERDICT_MAX - VERDICT_DROP_NO_BACKEND <= DROP_REASONS, "more reasons than counters");
_Static_assert(sizeof(((struct service_cpu *)0)->dropped) == DROP_REASONS * sizeof(__u64),
	       "DROP_REASONS is the number of counters");
_Static_assert(VERDICT_MAX * sizeof(__u64) <= sizeof(struct verdict_cpu),
	       "more verdicts than counters");

static __always_inline bool is_drop(__u32 verdict)
{
	return verdict >= VERDICT_DROP_NO_BACKEND;
}

static __always_inline void count_service(const struct lb_ctx *lb, __u32 service, bool fresh,
					  __u32 verdict)
{
	struct service_cpu *stats = service_stats(lb->cpu, service);
	__u32 reason = verdict - VERDICT_DROP_NO_BACKEND;

	if (!stats)
		return;
	stats->packets++;
	stats->bytes += lb->pkt.l3_length;
	if (fresh)
		stats->flows++;
	if (unlikely(is_drop(verdict))) {
		stats->drops++;
		/* The verifier wants to see that the very number that is used is compared. */
		barrier_var(reason);
		if (reason < DROP_REASONS)
			stats->dropped[reason]++;
	}
}

/* A packet of a backend that no flow entry matched. */
static __always_inline void count_backend_flow(__u32 cpu, __u32 handle)
{
	__u32 i = cpu * backends_max + (handle & ((1 << HANDLE_INDEX_BITS) - 1));
	__u64 *flows = bpf_map_lookup_elem(&backend_flows, &i);

	if (flows)
		(*flows)++;
}

/* The first packet of a backend that is dropped for a reason makes the counter. */
static __noinline void count_backend_drop(__u32 handle, __u32 verdict)
{
	struct backend_drop key = { .handle = handle, .verdict = verdict };
	__u64 one = 1, *packets = bpf_map_lookup_elem(&backend_drops, &key);

	if (packets)
		(*packets)++;
	else
		bpf_map_update_elem(&backend_drops, &key, &one, BPF_NOEXIST);
}

#endif
