/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Wildcard rules for a BPF program: which of a hundred thousand, with prefixes, port
 * ranges and priorities, does this packet match? In any program that isn't sleepable
 * (XDP, tc, cgroup ...), on Linux 5.10 and newer. Needs nothing else of Towpath.
 *
 *	#include <towpath/wildcard.h>
 *
 *	WILDCARD_TABLE(acl, 10000);
 *	...
 *		struct wildcard_key key = { .family = WILDCARD_IPV4, ... };
 *		__u64 value;
 *
 *		if (wildcard_lookup(acl, &key, &value) && value == DENY)
 *			return XDP_DROP;
 *
 * towpath.wildcard.WildcardTable writes the rules, while packets are looked up.
 * docs/wildcard.md is the tutorial, abi/wildcard.h says what lies where.
 *
 * A table may be used by several programs and a program may have several tables.
 */
#ifndef TOWPATH_WILDCARD_H
#define TOWPATH_WILDCARD_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/wildcard.h"

enum wildcard_family {
	WILDCARD_IPV4 = 2,  /* AF_INET */
	WILDCARD_IPV6 = 10, /* AF_INET6 */
};

/* What is looked up. Where a packet has no ports or no tag, leave them 0. */
struct wildcard_key {
	__be32 saddr[4]; /* an IPv4 address is the last word */
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 family;   /* enum wildcard_family; any other matches nothing */
	__u16 vlan;    /* identifier, host order; 0 = untagged */
	__u32 ifindex; /* ingress device; 0 where no rule names one, which is faster */
};

/*
 * Another CPU may be writing: a word that says where others are is read once, so
 * that what is checked is what is used.
 */
#define WILDCARD_READ_ONCE(word) (*(const volatile __u64 *)&(word))

/*
 * A number below a power of two, such that old verifiers see that it is: compilers like
 * to put the mask elsewhere.
 */
static __always_inline __u64 wildcard_below(__u64 number, __u64 limit)
{
	asm volatile("" : "+r"(number));
	return number & (limit - 1);
}

/* ---- One rule -------------------------------------------------------------------- */

/* Has its highest bit set if the port is outside. */
static __always_inline __u64 wildcard_outside(__u64 port, __u16 low, __u16 span)
{
	return (__u64)span - (__u16)(port - low);
}

/* All conditions in one, so that there is one branch for the CPU to guess. */
static __always_inline bool wildcard_matches(const struct wildcard_rule *rule, const __u64 *key,
					     int words)
{
	const __u64 *bits = (const __u64 *)(rule + 1), *mask = bits + words;
	__u64 rest = key[words - 1];
	__u64 wrong =
		(wildcard_outside(rest >> WILDCARD_SPORT, rule->sport_low, rule->sport_span) |
		 wildcard_outside(rest >> WILDCARD_DPORT, rule->dport_low, rule->dport_span)) >>
		63;
	int i;

	for (i = 0; i < words; i++)
		wrong |= (key[i] ^ bits[i]) & mask[i];
	return !wrong;
}

/* ---- Which tuples ---------------------------------------------------------------- */

static __always_inline __u64 wildcard_leaf(const struct wildcard_window *window, __u64 high,
					   __u64 low)
{
	return wildcard_below((window->word ? low : high) >> window->shift, WILDCARD_WINDOW_LEAVES);
}

/* A bit for each tuple in which there may be a rule for the packet. */
static __always_inline __u64 wildcard_candidates(const struct wildcard_index *index,
						 const __u64 *key, int words)
{
	bool is_v4 = words == WILDCARD_WORDS_V4;
	__u64 rest = key[words - 1];
	__u64 source = wildcard_leaf(&index->source, key[0], key[is_v4 ? 0 : 1]);
	__u64 destination =
		wildcard_leaf(&index->destination, key[is_v4 ? 0 : 2], key[is_v4 ? 0 : 3]);
	__u64 port = (__u16)(rest >> WILDCARD_DPORT);
	__u64 leaf = wildcard_below(WILDCARD_PORT_LEAF(port), WILDCARD_PORT_LEAVES);
	__u64 protocol = wildcard_below(rest >> WILDCARD_PROTOCOL, WILDCARD_PROTOCOLS);

	return (index->any_source | index->sources[source]) &
	       (index->any_destination | index->destinations[destination]) &
	       (index->any_port | index->ports[leaf]) &
	       (index->any_protocol | index->protocols[protocol]);
}

static __always_inline __u64 wildcard_hash(const struct wildcard_index *index,
					   const struct wildcard_tuple *tuple, const __u64 *key,
					   int words)
{
	__u64 hash = 0;
	int i;

	for (i = 0; i < words; i++)
		hash += (key[i] & tuple->mask[i]) * index->multipliers[i];
	return (hash ^ hash >> 32) * index->multipliers[WILDCARD_WORDS_V6];
}

/* The run that the packet's rules are in, if the tuple has any for it; else 0. */
static __always_inline __u64 wildcard_run(void *slots, const struct wildcard_index *index,
					  const struct wildcard_tuple *tuple, const __u64 *key,
					  int words)
{
	__u64 hash = wildcard_hash(index, tuple, key, words);
	__u64 place = WILDCARD_READ_ONCE(tuple->place), run;
	__u32 at =
		(__u32)place + ((__u32)(hash >> WILDCARD_SLOT) & (__u32)(place >> WILDCARD_SIZE));
	const __u64 *slot = bpf_map_lookup_elem(slots, &at);

	if (!slot)
		return 0;
	run = WILDCARD_READ_ONCE(*slot);
	return run >> WILDCARD_MARKS >> (hash >> WILDCARD_MARK) & 1 ? run : 0;
}

/* ---- The search ------------------------------------------------------------------ */

/*
 * The place of the best rule for a key, 0 if no rule matches. Tuples are looked into
 * until no other can have a better rule than the one found.
 */
static __always_inline __u32 wildcard_find(void *index_map, void *slots, void *rules,
					   const __u64 *key, int words)
{
	const struct wildcard_index *index;
	__u64 best = 0, candidates;
	__u32 zero = 0, found = 0, at;
	int i, j;

	index = bpf_map_lookup_elem(index_map, &zero);
	if (!index)
		return 0;
	candidates = wildcard_candidates(index, key, words);
#pragma clang loop unroll(disable)
	for (i = 0; i < WILDCARD_TUPLES && candidates; i++) {
		const struct wildcard_tuple *tuple;
		__u64 bit = candidates & -candidates, run;

		candidates ^= bit;
		tuple = &index->tuples[wildcard_below(bit * WILDCARD_BIT_HASH >> 58,
						      WILDCARD_TUPLES)];
		if (tuple->ceiling <= best)
			break;
		if (tuple->top <= best)
			continue;
		run = wildcard_run(slots, index, tuple, key, words);
		at = run & ((1U << WILDCARD_COUNT) - 1);
#pragma clang loop unroll(disable)
		for (j = 0; j < WILDCARD_RUN && j < (__u8)(run >> WILDCARD_COUNT); j++, at++) {
			const struct wildcard_rule *rule = bpf_map_lookup_elem(rules, &at);

			if (!rule || rule->rank <= best)
				break;
			if (wildcard_matches(rule, key, words)) {
				best = rule->rank;
				found = at;
				break;
			}
		}
	}
	return found;
}

/* The number that stands for a device in keys. */
static __always_inline __u32 wildcard_device(void *index_map, __u32 ifindex)
{
	const struct wildcard_index *index;
	__u32 zero = 0, at = WILDCARD_DEVICE_SLOT(ifindex);
	int i;

	index = bpf_map_lookup_elem(index_map, &zero);
	if (!index)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < WILDCARD_DEVICE_PROBES; i++, at++) {
		__u64 slot = WILDCARD_READ_ONCE(
			index->devices[wildcard_below(at, WILDCARD_DEVICE_SLOTS)]);

		if (!slot)
			break;
		if (slot >> WILDCARD_IFINDEX == ifindex)
			return slot;
	}
	return 0;
}

/*
 * How many changes of rules there have been. A search looks into each tuple at another
 * moment: if two rules come meanwhile, the first where it has been and the second where
 * it is going, it finds the second, though that was never the best. So a search is done
 * again when this has changed, twice at most. (A change by itself is seen whole or not
 * at all. Where a CPU reads in another order than it is told, this makes such a mix
 * rarer than it is, no more.)
 */
static __always_inline __u64 wildcard_changes(void *index_map)
{
	const struct wildcard_index *index;
	__u32 zero = 0;

	index = bpf_map_lookup_elem(index_map, &zero);
	return index ? WILDCARD_READ_ONCE(index->changes) : 0;
}

/* ---- Keys ------------------------------------------------------------------------ */

static __always_inline __u64 wildcard_two(__be32 high, __be32 low)
{
	return (__u64)bpf_ntohl(high) << 32 | bpf_ntohl(low);
}

static __always_inline __u64 wildcard_rest(const struct wildcard_key *key, __u32 device)
{
	return (__u64)bpf_ntohs(key->sport) << WILDCARD_SPORT |
	       (__u64)bpf_ntohs(key->dport) << WILDCARD_DPORT |
	       (__u64)key->protocol << WILDCARD_PROTOCOL |
	       (__u64)(key->vlan & 0xfff) << WILDCARD_VLAN | device;
}

/* The value is stored whatever was found: else the compiler may compare it before it is set. */
static __always_inline __u64 wildcard_answer(const struct wildcard_rule *rule, __u64 *value)
{
	*value = rule ? rule->value : 0;
	if (!rule)
		return 0;
	return ~rule->rank & ((1ULL << WILDCARD_PRIORITY) - 1);
}

/* ---- Tables ---------------------------------------------------------------------- */

#define WILDCARD_ARRAY(name, value_type, entries)  \
	struct {                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);  \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, entries);      \
		__type(key, __u32);                \
		__type(value, value_type);         \
	} name SEC(".maps")

#define WILDCARD_MAPS(name, number, rules)                                       \
	WILDCARD_ARRAY(name##_index##number, struct wildcard_index, 1);          \
	WILDCARD_ARRAY(name##_slots##number, __u64, WILDCARD_SLOTS_ROOM(rules)); \
	WILDCARD_ARRAY(name##_rules##number, struct wildcard_rule##number,       \
		       WILDCARD_RULES_ROOM(rules))

/*
 * A table `name` for so many rules of IPv4 and as many of IPv6, which
 * towpath.wildcard.resize() can change before it is loaded. The search is in global
 * functions, which the verifier looks at once by themselves, whatever the program
 * around them is like. That is why they take numbers only: Linux 5.10 allows them
 * no pointers.
 */
#define WILDCARD_TABLE(name, rules)                                                                \
	WILDCARD_MAPS(name, 4, rules);                                                             \
	WILDCARD_MAPS(name, 6, rules);                                                             \
                                                                                                   \
	__noinline __u32 name##_find4(__u64 addresses, __u64 rest)                                 \
	{                                                                                          \
		__u64 key[] = { addresses, rest };                                                 \
                                                                                                   \
		return wildcard_find(&name##_index4, &name##_slots4, &name##_rules4, key,          \
				     WILDCARD_WORDS_V4);                                           \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 name##_find6(__u64 source, __u64 source_low, __u64 destination,           \
				      __u64 destination_low, __u64 rest)                           \
	{                                                                                          \
		__u64 key[] = { source, source_low, destination, destination_low, rest };          \
                                                                                                   \
		return wildcard_find(&name##_index6, &name##_slots6, &name##_rules6, key,          \
				     WILDCARD_WORDS_V6);                                           \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 name##_again4(__u64 addresses, __u64 rest)                                \
	{                                                                                          \
		__u64 changes = wildcard_changes(&name##_index4);                                  \
		__u32 at = name##_find4(addresses, rest);                                          \
                                                                                                   \
		if (wildcard_changes(&name##_index4) != changes)                                   \
			at = name##_find4(addresses, rest);                                        \
		return at;                                                                         \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 name##_again6(__u64 source, __u64 source_low, __u64 destination,          \
				       __u64 destination_low, __u64 rest)                          \
	{                                                                                          \
		__u64 changes = wildcard_changes(&name##_index6);                                  \
		__u32 at = name##_find6(source, source_low, destination, destination_low, rest);   \
                                                                                                   \
		if (wildcard_changes(&name##_index6) != changes)                                   \
			at = name##_find6(source, source_low, destination, destination_low, rest); \
		return at;                                                                         \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 name##_device4(__u32 ifindex)                                             \
	{                                                                                          \
		return wildcard_device(&name##_index4, ifindex);                                   \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 name##_device6(__u32 ifindex)                                             \
	{                                                                                          \
		return wildcard_device(&name##_index6, ifindex);                                   \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) __u64 name##_lookup4(                       \
		const struct wildcard_key *key, __u64 *value)                                      \
	{                                                                                          \
		__u64 changes = wildcard_changes(&name##_index4);                                  \
		__u64 rest = wildcard_rest(key, key->ifindex ? name##_device4(key->ifindex) : 0);  \
		__u64 addresses = wildcard_two(key->saddr[3], key->daddr[3]);                      \
		__u32 at = name##_find4(addresses, rest);                                          \
		struct wildcard_rule4 *rule;                                                       \
                                                                                                   \
		if (wildcard_changes(&name##_index4) != changes) {                                 \
			rest = wildcard_rest(key,                                                  \
					     key->ifindex ? name##_device4(key->ifindex) : 0);     \
			at = name##_again4(addresses, rest);                                       \
		}                                                                                  \
		rule = bpf_map_lookup_elem(&name##_rules4, &at);                                   \
                                                                                                   \
		return wildcard_answer(at && rule ? &rule->head : NULL, value);                    \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) __u64 name##_lookup6(                       \
		const struct wildcard_key *key, __u64 *value)                                      \
	{                                                                                          \
		__u64 changes = wildcard_changes(&name##_index6);                                  \
		__u64 rest = wildcard_rest(key, key->ifindex ? name##_device6(key->ifindex) : 0);  \
		__u64 source = wildcard_two(key->saddr[0], key->saddr[1]);                         \
		__u64 source_low = wildcard_two(key->saddr[2], key->saddr[3]);                     \
		__u64 destination = wildcard_two(key->daddr[0], key->daddr[1]);                    \
		__u64 destination_low = wildcard_two(key->daddr[2], key->daddr[3]);                \
		__u32 at = name##_find6(source, source_low, destination, destination_low, rest);   \
		struct wildcard_rule6 *rule;                                                       \
                                                                                                   \
		if (wildcard_changes(&name##_index6) != changes) {                                 \
			rest = wildcard_rest(key,                                                  \
					     key->ifindex ? name##_device6(key->ifindex) : 0);     \
			at = name##_again6(source, source_low, destination, destination_low,       \
					   rest);                                                  \
		}                                                                                  \
		rule = bpf_map_lookup_elem(&name##_rules6, &at);                                   \
                                                                                                   \
		return wildcard_answer(at && rule ? &rule->head : NULL, value);                    \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) __u64 name##_lookup(                        \
		const struct wildcard_key *key, __u64 *value)                                      \
	{                                                                                          \
		if (key->family == WILDCARD_IPV4)                                                  \
			return name##_lookup4(key, value);                                         \
		if (key->family == WILDCARD_IPV6)                                                  \
			return name##_lookup6(key, value);                                         \
		return wildcard_answer(NULL, value);                                               \
	}

/*
 * The number of the best rule for a key, and its value by way of the last argument;
 * 0 and 0 if no rule matches.
 */
#define wildcard_lookup(table, key, value) table##_lookup(key, value)

#endif
