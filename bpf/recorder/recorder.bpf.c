/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The load balancer with a recorder: takes the other one's place on the devices while there
 * is a capture, so that nothing is paid for it when there is none.
 *
 * Each capture is one instance of this program, loaded for its filter. They form a chain: the
 * first is attached, each looks at the packet and then calls the next, and the last, which has
 * none to call, is the load balancer and writes for all of them. If the chain is cut, which it
 * is when the process that made it dies, the first is the last: packets go on as ever.
 */
#include <stdbool.h>

static const bool recording = true;

#include "lb/lb.bpf.c"

#include "recorder/record.h"

/* All of a packet's way, once it has a context. Returns the verdict. */
static __always_inline __u32 handle(struct xdp_md *ctx, struct lb_ctx *lb)
{
	int parsed = handle_parse(ctx, lb);

	if (unlikely(parsed != PARSE_OK))
		return handled(lb, parsed);
	return handled(lb, handle_flow(ctx, lb, service_exact(&lb->pkt.flow)));
}

SEC("xdp")
int towpath_recorder(struct xdp_md *ctx)
{
	__u32 verdict, action;
	struct record_cpu *cpu;
	struct lb_ctx *lb;

	record_begin(ctx);
	bpf_tail_call(ctx, &record_chain, record_slot);

	lb = lb_ctx_begin(ctx);
	if (!lb)
		return XDP_PASS;
	verdict = handle(ctx, lb);
	action = xdp_action(lb, verdict);
	cpu = record_cpu();
	if (cpu && cpu->chosen)
		record_end(ctx, verdict, action);
	return action;
}
