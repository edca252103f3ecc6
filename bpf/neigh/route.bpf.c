/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Asks the kernel's FIB as the datapath does, for whoever wants to see the answer. Never attached:
 * BPF_PROG_TEST_RUN gives it a "packet" that is the question, and gets the answer back in its place.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"
#include "net/fib.h"

/* The only record that crosses here, and no other program's business: hence not in abi/. */
struct route_question {
	struct address from, to; /* `from`: the answer has what the kernel prefers, if asked for */
	__u8 family;		 /* enum family, of both */
	__u8 name_source;
	__u8 protocol; /* of the packet: IPPROTO_* */
	__u8 _reserved;
	__u32 ifindex; /* in on which device; the answer: out of which */
	/* Answers. */
	struct address next; /* the next hop: the destination itself, or a gateway */
	__u8 next_family;    /* enum family: an IPv4 route may go by an IPv6 gateway */
	__u8 on_link;	     /* it is the destination itself */
	__u8 dmac[6];
	__u8 smac[6];
	__u16 mtu;    /* in bytes; 0: the kernel doesn't tell (before 5.12) */
	__s32 result; /* BPF_FIB_LKUP_RET_* or a negative error number */
};
BTF_KEEP(struct route_question);

static __always_inline void take_answer(struct route_question *ask,
					const struct bpf_fib_lookup *fib)
{
	ask->ifindex = fib->ifindex;
	ask->mtu = fib->mtu_result;
	ask->next_family = fib->family == AF_INET ? FAMILY_V4 : FAMILY_V6;
	ask->on_link = fib_on_link(fib, &ask->to, ask->family);
	__builtin_memcpy(ask->dmac, fib->dmac, 6);
	__builtin_memcpy(ask->smac, fib->smac, 6);
	__builtin_memset(&ask->next, 0, sizeof(ask->next));
	if (fib->family == AF_INET)
		ask->next.word[3] = fib->ipv4_dst;
	else
		__builtin_memcpy(&ask->next, fib->ipv6_dst, 16);
	if (ask->family == FAMILY_V4)
		ask->from.word[3] = fib->ipv4_src;
	else
		__builtin_memcpy(&ask->from, fib->ipv6_src, 16);
}

SEC("xdp")
int ask_route(struct xdp_md *ctx)
{
	struct route_question *ask = (void *)(long)ctx->data;
	struct bpf_fib_lookup fib = {};

	if ((void *)(ask + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	fib.ifindex = ask->ifindex;
	fib.l4_protocol = ask->protocol;
	fib_addresses(&fib, ask->family, &ask->from, &ask->to);
	ask->result = fib_lookup(ctx, &fib, ask->name_source);
	take_answer(ask, &fib);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
