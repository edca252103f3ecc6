/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Times a tc program from inside the kernel, as timer.bpf.c does with those of XDP: the program
 * under test is called from a subprogram, and the packet is put back before the next call. Programs
 * that write a packet without making it longer or shorter can be timed.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"

enum tc_bench_limits {
	TC_BENCH_BATCH = 32,
	TC_BENCH_WORDS = 8,	  /* of a packet that are put back */
	TC_BENCH_VARIED = 30,	  /* where an IPv4 packet's destination is */
	TC_BENCH_NOT_CALLED = -2, /* the slot of under_test is empty */
};
BTF_KEEP(enum tc_bench_limits);

/* The whole of .bss, and no other program's business. */
struct tc_bench {
	__u64 packet[8]; /* its first 64 bytes */
	__s32 expected;	 /* TC_ACT_* */
	__u32 untimed;	 /* batches yet to go before time counts: caches fill */
	__u64 unexpected;
	__u64 broken;
	__u64 packets; /* that were timed, in so many */
	__u64 nanoseconds;
	__u32 vary; /* destinations that packets go to in turn, each with one flow more; 0: one flow */
	__u32 sequence;
	__u32 mark; /* skb->mark of each packet, which has no stamp; 0: as the one before has left it */
	__u32 mark_mask; /* so many marks more, a power of two less one, in turn */
	__u32 turn;
	__u32 _reserved;
} bench;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

volatile int not_called = TC_BENCH_NOT_CALLED;

/* See timer.bpf.c. */
static __noinline int call_program(struct __sk_buff *skb)
{
	int verdict = not_called;

	bpf_tail_call_static(skb, &under_test, 0);
	return verdict;
}

static __always_inline void bench_vary(void *data, __u32 flow)
{
	__be16 *daddr = data + TC_BENCH_VARIED + 2, *sport = data + TC_BENCH_VARIED + 4;

	*daddr = bpf_htons(bpf_ntohs(*daddr) + flow % bench.vary);
	*sport = bpf_htons(bpf_ntohs(*sport) + flow / bench.vary);
}

__noinline int bench_put_back(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 *words = data;

	if ((void *)(words + TC_BENCH_WORDS) > end)
		return -1;
#pragma unroll
	for (int i = 0; i < TC_BENCH_WORDS; i++)
		words[i] = bench.packet[i];
	if (bench.vary)
		bench_vary(data, bench.sequence++);
	return 0;
}

SEC("tc")
int bench_tc_wrapper(struct __sk_buff *skb)
{
	__u64 start = bpf_ktime_get_ns();
	__u64 wrong = 0;
	int i;

	for (i = 0; i < TC_BENCH_BATCH; i++) {
		if (bench.mark) {
			skb->mark = bench.mark + (bench.turn++ & bench.mark_mask);
			skb->tstamp = 0;
		}
		if (bench_put_back(skb)) {
			bench.broken++;
			return TC_ACT_SHOT;
		}
		if (call_program(skb) != bench.expected)
			wrong++;
	}
	bench.unexpected += wrong;
	if (bench.untimed) {
		bench.untimed--;
		return TC_ACT_OK;
	}
	bench.nanoseconds += bpf_ktime_get_ns() - start;
	bench.packets += TC_BENCH_BATCH;
	return TC_ACT_OK;
}

SEC("tc")
int bench_tc_floor(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
