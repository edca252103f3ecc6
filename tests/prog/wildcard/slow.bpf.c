/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Look-ups that take their time between any two of their reads, as on a CPU that is
 * interrupted there: whatever a writer does wrong meanwhile, they see.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum slow_limits {
	SLOW_BATCH = 8,
};

__u64 waited;

__noinline int dawdle(__u32 most)
{
	__u32 times = bpf_get_prandom_u32() & 63;
	__u32 i;

	for (i = 0; i < 64 && i < times && i < most; i++)
		waited += bpf_ktime_get_ns();
	return 0;
}

#define bpf_map_lookup_elem(map, key)             \
	({                                        \
		dawdle(64);                       \
		(bpf_map_lookup_elem)((map), key); \
	})

#include <towpath/wildcard.h>

const enum slow_limits btf_slow_limits __attribute__((used)) = 0;

WILDCARD_TABLE(rules, 500);

struct query {
	struct wildcard_key key;
	__u32 _reserved;
};

struct answer {
	__u64 number;
	__u64 value;
	__u64 changes; /* that were counted during the look-up */
};

WILDCARD_ARRAY(queries, struct query, 256);
WILDCARD_ARRAY(answers, struct answer, SLOW_BATCH);

__u32 next; /* query to begin with */

#undef bpf_map_lookup_elem

static __always_inline __u64 changes(const struct wildcard_key *key)
{
	if (key->family == WILDCARD_IPV4)
		return wildcard_changes(&rules_index4);
	return wildcard_changes(&rules_index6);
}

SEC("tc")
int answer_slowly(struct __sk_buff *ctx)
{
	__u32 i;

	for (i = 0; i < SLOW_BATCH; i++) {
		__u32 at = (next + i) & 255, to = i;
		struct query *query = bpf_map_lookup_elem(&queries, &at);
		struct answer *answer = bpf_map_lookup_elem(&answers, &to);
		__u64 value = 0, before;

		if (!query || !answer)
			break;
		before = changes(&query->key);
		answer->number = wildcard_lookup(rules, &query->key, &value);
		answer->value = value;
		answer->changes = changes(&query->key) - before;
	}
	return 0;
}

char _license[] SEC("license") = "GPL";
