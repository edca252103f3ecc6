/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Times another XDP program from inside the kernel.
 *
 * User space puts the program under test in `under_test`, describes the
 * packet in `bench` below and runs this wrapper by BPF_PROG_TEST_RUN
 * with repeat=N. Each run sends BENCH_BATCH packets through the program, one
 * tail call each from a subprogram, so that control comes back here, and takes
 * back what the program did to the packet before the next one. The kernel lets
 * one run make 33 tail calls, hence the size of a batch.
 *
 * repeat= alone, without this wrapper, would measure something else: the
 * kernel doesn't restore the packet between runs, so each would see what the
 * last one encapsulated, until the headroom is used up.
 *
 * Everything done here between two packets is done for every program and every
 * scenario alike: a scenario of one flow also writes its source address each
 * time. The wrapper around `bench_floor`, which does nothing, is therefore the
 * floor of them all.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"

enum bench_limits {
	BENCH_BATCH = 32,
	BENCH_HEADERS = 64,    /* source_offset is below this, a power of two */
	BENCH_REWRITTEN = 8,   /* words behind the Ethernet header that are put back */
	BENCH_NOT_CALLED = -1, /* the slot of under_test is empty */
};
BTF_KEEP(enum bench_limits);

/*
 * The only record that crosses here, and no other program's business: hence not
 * in abi/. It is the whole of .bss.
 */
struct bench {
	/* What to send: written by user space before a run. */
	__u8 ethernet[14];
	__u16 source_offset; /* of the word of the source address that varies */
	__u32 source_base;   /* its value, host order */
	__u32 source_mask;   /* bits of it that tell flows apart, 0 = one flow */
	__u16 frame_length;
	__u16 expected_verdict; /* enum xdp_action */
	__u32 untimed;		/* batches yet to go before time counts: caches fill */
	__u32 rewrites;		/* 1: the program writes into the packet, so put it back */
	__u64 packet[8];	/* what it was, from the Ethernet header on */

	/* What came of it: read by user space after a run. */
	__u32 sequence;	  /* packets sent so far, from run to run */
	__u32 broken;	  /* batches given up: the frame was not as described */
	__u64 unexpected; /* packets with another verdict */
	__u64 packets;	  /* that were timed, in so many */
	__u64 nanoseconds;
} bench;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

/* In memory, so that neither compiler nor verifier knows what it is. */
volatile int not_called = BENCH_NOT_CALLED;

/*
 * The program called returns for this function. To the verifier, though, a tail
 * call that works never comes back, and up to 6.12 at least it goes by what is
 * returned after one that fails: were that a constant, it would decide every
 * comparison with the result, and take the code for the other outcome out.
 */
static __noinline int call_program(struct xdp_md *ctx)
{
	int verdict = not_called;

	bpf_tail_call_static(ctx, &under_test, 0);
	return verdict;
}

/*
 * Multiplying by an odd number permutes the values under the mask: flows come
 * scattered, and each comes once before any comes again.
 */
static __always_inline __u32 next_source(__u32 number)
{
	return bench.source_base ^ ((number * 0x9e3779b1) & bench.source_mask);
}

/*
 * How much longer the frame is than it was. The verifier allows the difference
 * of two packet pointers, not the sums that the compiler would make of it.
 */
static __always_inline int growth(struct xdp_md *ctx)
{
	long length = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	asm volatile("" : "+r"(length));
	return (int)length - (int)bench.frame_length;
}

/* Up to the transport's checksum: of a packet of IPv4 that is seven words, of IPv6 all. */
static __always_inline int bench_put_back(__u64 *words, void *end)
{
	if ((void *)(words + BENCH_REWRITTEN - 1) > end)
		return -1;
#pragma unroll
	for (int i = 0; i < BENCH_REWRITTEN - 1; i++)
		words[i] = bench.packet[i];
	if ((void *)(words + BENCH_REWRITTEN) <= end)
		words[BENCH_REWRITTEN - 1] = bench.packet[BENCH_REWRITTEN - 1];
	return 0;
}

/*
 * Takes back the outer header (for a frame of its first length: 0 bytes of it,
 * at the same cost), and writes what it had overwritten. Global, so that the
 * verifier looks at it once rather than on every way through the loop.
 */
__noinline int bench_restore(struct xdp_md *ctx, __u32 number)
{
	__u32 offset = bench.source_offset & (BENCH_HEADERS - 1);
	void *data, *end;
	__be32 *source;

	if (bpf_xdp_adjust_head(ctx, growth(ctx)))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	source = data + offset;
	if (data + ETH_HLEN > end || (void *)(source + 1) > end)
		return -1;
	*(__u64 *)data = *(__u64 *)&bench.ethernet[0];
	*(__u32 *)(data + 8) = *(__u32 *)&bench.ethernet[8];
	*(__u16 *)(data + 12) = *(__u16 *)&bench.ethernet[12];
	if (bench.rewrites && bench_put_back(data + ETH_HLEN, end))
		return -1;
	*source = bpf_htonl(next_source(number));
	return 0;
}

SEC("xdp")
int bench_wrapper(struct xdp_md *ctx)
{
	__u32 number = bench.sequence;
	__u64 start = bpf_ktime_get_ns();
	__u64 wrong = 0;
	int i;

	for (i = 0; i < BENCH_BATCH; i++) {
		if (bench_restore(ctx, number++)) {
			bench.broken++;
			return XDP_ABORTED;
		}
		if (call_program(ctx) != (int)bench.expected_verdict)
			wrong++;
	}
	bench.unexpected += wrong;
	bench.sequence = number;
	if (bench.untimed) {
		bench.untimed--;
		return XDP_PASS;
	}
	bench.nanoseconds += bpf_ktime_get_ns() - start;
	bench.packets += BENCH_BATCH;
	return XDP_PASS;
}

SEC("xdp")
int bench_floor(struct xdp_md *ctx)
{
	return XDP_TX;
}

char _license[] SEC("license") = "Dual BSD/GPL";
