/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow hash. Every load balancer of a group must compute the same, so it
 * depends on nothing but the 5-tuple and a seed from the configuration.
 *
 * One step folds 64 bits into the state: xor, multiply by an odd constant, fold
 * the high half down. For a fixed state it is a bijection of its word, so two
 * flows that differ in one word never collide on that word alone.
 */
#ifndef TOWPATH_NET_HASH_H
#define TOWPATH_NET_HASH_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h> /* without it __always_inline is <linux/stddef.h>'s: inline alone */

#include "abi/base.h"
#include "net/wide.h"

/* The multiplier of Pelle Evensen's rrmxmx, a mixer that passes PractRand. */
static const __u64 HASH_MULTIPLIER = 0x9fb21c651e98df25ULL;

static __always_inline __u64 hash_step(__u64 state, __u64 word)
{
	state = (state ^ word) * HASH_MULTIPLIER;
	return state ^ state >> 32;
}

static __always_inline __u64 hash_address(__u64 state, const struct address *addr)
{
	const wide64 *half = (const wide64 *)addr;

	return hash_step(hash_step(state, half[0]), half[1]);
}

/*
 * Words are taken as they lie in memory, so that the little-endian value of
 * network-order bytes is what is hashed: for IPv4 the two addresses in one word
 * (source low), for IPv6 four words; then ports, protocol and family in one.
 */
static __always_inline __u64 hash_flow(const struct flow_key *flow, __u64 seed)
{
	__u64 state;

	if (flow->family == FAMILY_V4)
		state = hash_step(seed, flow->saddr.word[3] | (__u64)flow->daddr.word[3] << 32);
	else
		state = hash_address(hash_address(seed, &flow->saddr), &flow->daddr);
	state = hash_step(state, *(const wide64 *)&flow->sport);
	return hash_step(state, 0);
}

/*
 * Of a client, whatever it is talking to: for services with affinity it takes the
 * place of the flow hash.
 */
static __always_inline __u64 hash_client(const struct flow_key *flow, __u64 seed)
{
	__u64 state;

	if (flow->family == FAMILY_V4)
		state = hash_step(seed, flow->saddr.word[3]);
	else
		state = hash_address(seed, &flow->saddr);
	return hash_step(hash_step(state, flow->family), 0);
}

/* Of a destination port, whoever asks for it. */
static __always_inline __u64 hash_port(__be16 port, __u64 seed)
{
	return hash_step(hash_step(seed, port), 0);
}

/* 32 bits to [0, n) without a division (Lemire, arXiv:1805.10941). */
static __always_inline __u32 hash_scale(__u32 hash, __u32 n)
{
	return (__u64)hash * n >> 32;
}

#endif
