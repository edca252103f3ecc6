/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Times look-ups of wildcard rules inside the kernel, beside two other ways.
 *
 * User space fills `queries` and runs one of the programs by BPF_PROG_TEST_RUN with
 * repeat=N; each run looks up BENCH_BATCH of them and adds up the time it took.
 * `bench_floor` does the same without the look-up: its time is in all the others.
 * `answer_rules` and so on aren't timed but write down what was found. They are tc
 * programs, since the kernel takes milliseconds to begin a test run of an XDP one.
 *
 * The other ways are for IPv4 and there to compare with. Both know priorities and
 * port ranges, so that all three find the same:
 *
 *  - `bench_masks` is how Cilium's recorder did it: for one mask after the other,
 *    cut the key down to it and look it up in a hash. The list is data here, not
 *    compiled in. It is in order of the best rule of each mask, so that the search
 *    ends early, and ranges are cut into prefixes, each a rule with a mask.
 *  - `bench_scan` compares the packet with one rule after the other.
 */
#include <linux/pkt_cls.h>

#include "abi/btf.h"
#include "wildcard/wildcard.h"

enum bench_limits {
	BENCH_BATCH = 256,
	BENCH_CHUNK = 1024, /* masks or rules that one call goes through */
	BENCH_MASKS = 8 * BENCH_CHUNK,
	BENCH_RULES = 128 * BENCH_CHUNK,
};
BTF_KEEP(enum bench_limits);
BTF_KEEP(enum wildcard_limits);

WILDCARD_TABLE(rules, 1);

struct query {
	struct wildcard_key key;
	__u32 _reserved;
};

struct answer {
	__u64 number;
	__u64 value;
};

struct mask {
	__u64 mask[2];
	__u64 top; /* the highest rank of its rules */
};

struct masked {
	__u64 bits[2];
	__u64 mask; /* its index */
};

WILDCARD_ARRAY(queries, struct query, 1);
WILDCARD_ARRAY(answers, struct answer, 1);
WILDCARD_ARRAY(masks, struct mask, BENCH_MASKS);
WILDCARD_ARRAY(scanned, struct wildcard_rule4, 1); /* falling rank; 0 after the last */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct masked);
	__type(value, __u64); /* rank */
} masked SEC(".maps");

/* The whole of .bss. */
struct bench {
	__u32 next; /* query */
	__u32 mask; /* queries less one */
	__u32 masks;
	__u32 untimed; /* runs yet to go before time counts: caches fill */
	__u64 nanoseconds;
	__u64 lookups; /* that were timed, in so many */
	__u64 sum;     /* of what was found, so that it has to be found */
} bench;

static __always_inline struct query *next_query(__u32 i)
{
	__u32 at = (bench.next + i) & bench.mask;

	return bpf_map_lookup_elem(&queries, &at);
}

static __always_inline void count(__u64 start, __u64 sum)
{
	__u64 taken = bpf_ktime_get_ns() - start;

	bench.next += BENCH_BATCH;
	bench.sum += sum;
	if (bench.untimed) {
		bench.untimed--;
		return;
	}
	bench.nanoseconds += taken;
	bench.lookups += BENCH_BATCH;
}

/* ---- The other ways -------------------------------------------------------------- */

/* The best rank among that given and those that some masks in a row lead to. */
__noinline __u64 masks_chunk(__u64 addresses, __u64 rest, __u32 first, __u64 best)
{
	__u32 i;

	for (i = 0; i < BENCH_CHUNK && first + i < bench.masks; i++) {
		struct masked key = { .mask = first + i };
		__u32 at = first + i;
		struct mask *mask = bpf_map_lookup_elem(&masks, &at);
		__u64 *rank;

		if (!mask || mask->top <= best)
			break;
		key.bits[0] = addresses & mask->mask[0];
		key.bits[1] = rest & mask->mask[1];
		rank = bpf_map_lookup_elem(&masked, &key);
		if (rank && *rank > best)
			best = *rank;
	}
	return best;
}

__noinline __u64 masks_find(__u64 addresses, __u64 rest)
{
	__u64 best = 0;
	__u32 first;

	for (first = 0; first < BENCH_MASKS && first < bench.masks; first += BENCH_CHUNK)
		best = masks_chunk(addresses, rest, first, best);
	return best;
}

/* The rank of the first that matches, 1 if there are no more rules, 0 to go on. */
__noinline __u64 scan_chunk(__u64 addresses, __u64 rest, __u32 first)
{
	__u64 key[] = { addresses, rest };
	__u32 i;

	for (i = 0; i < BENCH_CHUNK; i++) {
		__u32 at = first + i;
		struct wildcard_rule4 *rule = bpf_map_lookup_elem(&scanned, &at);

		if (!rule || !rule->head.rank)
			return 1;
		if (wildcard_matches(&rule->head, key, WILDCARD_WORDS_V4))
			return rule->head.rank;
	}
	return 0;
}

__noinline __u64 scan_find(__u64 addresses, __u64 rest)
{
	__u64 rank = 0;
	__u32 first;

	for (first = 0; first < BENCH_RULES && !rank; first += BENCH_CHUNK)
		rank = scan_chunk(addresses, rest, first);
	return rank > 1 ? rank : 0;
}

/* The number of a rule from its rank; 0 for none. */
static __always_inline __u64 number_of(__u64 rank)
{
	return rank ? ~rank & ((1ULL << WILDCARD_PRIORITY) - 1) : 0;
}

/* ---- Programs -------------------------------------------------------------------- */

/*
 * One look-up is a global function each, so that the verifier doesn't go through it
 * BENCH_BATCH times. The call is in the floor as well.
 */
#define WAY(name, query, value, find)                                       \
	__noinline __u64 name##_timed(__u32 i)                              \
	{                                                                   \
		struct query *query = next_query(i);                        \
		__u64 value = 0;                                            \
                                                                            \
		return query ? find + value : 0;                            \
	}                                                                   \
                                                                            \
	__noinline int name##_told(__u32 i)                                 \
	{                                                                   \
		__u32 at = (bench.next + i) & bench.mask;                   \
		struct answer *answer = bpf_map_lookup_elem(&answers, &at); \
		struct query *query = next_query(i);                        \
		__u64 value = 0;                                            \
                                                                            \
		if (!query || !answer)                                      \
			return -1;                                          \
		answer->number = find;                                      \
		answer->value = value;                                      \
		return 0;                                                   \
	}                                                                   \
                                                                            \
	SEC("tc")                                                           \
	int bench_##name(struct __sk_buff *ctx)                             \
	{                                                                   \
		__u64 start = bpf_ktime_get_ns(), sum = 0;                  \
		int i;                                                      \
                                                                            \
		for (i = 0; i < BENCH_BATCH; i++)                           \
			sum += name##_timed(i);                             \
		count(start, sum);                                          \
		return TC_ACT_OK;                                           \
	}                                                                   \
                                                                            \
	SEC("tc")                                                           \
	int answer_##name(struct __sk_buff *ctx)                            \
	{                                                                   \
		int i;                                                      \
                                                                            \
		for (i = 0; i < BENCH_BATCH; i++)                           \
			name##_told(i);                                     \
		bench.next += BENCH_BATCH;                                  \
		return TC_ACT_OK;                                           \
	}

#define ADDRESSES(query) wildcard_two((query)->key.saddr[3], (query)->key.daddr[3])
#define REST(query)	 wildcard_rest(&(query)->key, 0)

WAY(floor, query, value, query->key.daddr[3])
WAY(rules, query, value, wildcard_lookup(rules, &query->key, &value))
WAY(masks, query, value, number_of(masks_find(ADDRESSES(query), REST(query))))
WAY(scan, query, value, number_of(scan_find(ADDRESSES(query), REST(query))))

char _license[] SEC("license") = "Dual BSD/GPL";
