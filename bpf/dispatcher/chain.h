/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a dispatcher runs, whatever the version of its `conf`, which is declared
 * before this is included. Names are the protocol's: programs are put in the
 * place of prog0() to prog9(), or of xdp_dispatcher() where there is one alone.
 */
#ifndef TOWPATH_DISPATCHER_CHAIN_H
#define TOWPATH_DISPATCHER_CHAIN_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi/dispatcher.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/*
 * Its result is read from memory, lest the compiler decide by it.
 *
 * The frame isn't changed, but seems so to the verifier: since 6.13 (81f6d0530ba0,
 * and where that was brought to older ones) a program that changes packets can only
 * take the place of a function that does.
 */
#define REPLACEABLE(number)                              \
	__noinline int prog##number(struct xdp_md *ctx)  \
	{                                                \
		volatile int nobody = DISPATCHER_NOBODY; \
                                                         \
		bpf_xdp_adjust_tail(ctx, 0);             \
		return nobody;                           \
	}

REPLACEABLE(0)
REPLACEABLE(1)
REPLACEABLE(2)
REPLACEABLE(3)
REPLACEABLE(4)
REPLACEABLE(5)
REPLACEABLE(6)
REPLACEABLE(7)
REPLACEABLE(8)
REPLACEABLE(9)

/* `conf` is constant to the verifier, which takes out what is behind the last program. */
#define RUN(number)                                                 \
	do {                                                        \
		if (conf.programs <= number)                        \
			return XDP_PASS;                            \
		verdict = prog##number(ctx);                        \
		if (!(conf.actions[number] & 1U << (verdict & 31))) \
			return verdict;                             \
	} while (0)

SEC("xdp")
int xdp_dispatcher(struct xdp_md *ctx)
{
	int verdict;

	RUN(0);
	RUN(1);
	RUN(2);
	RUN(3);
	RUN(4);
	RUN(5);
	RUN(6);
	RUN(7);
	RUN(8);
	RUN(9);
	return XDP_PASS;
}

#endif
