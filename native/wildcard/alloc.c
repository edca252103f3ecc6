/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room in the arrays: for runs of rules, and for the slots of a tuple.
 *
 * Rules have a bit each. Runs are short (16 at most), so free ones are found by
 * shifting words of bits; a run doesn't cross from one word to the next.
 *
 * Slots are given out in blocks of a power of two, as by a buddy allocator. Blocks
 * are few, two for each tuple at most and what is free between them, so they are
 * walked rather than listed: `orders` has the size of each where it begins.
 */
#include "wildcard/wildcard.h"

enum {
	WORD = 64,
	FREE_BLOCK = 0x80,
};

/* The bits at which `count` bits that are set begin. */
static u64 beginnings(u64 bits, u32 count)
{
	for (u32 have = 1; have < count;) {
		u32 step = have < count - have ? have : count - have;

		bits &= bits >> step;
		have += step;
	}
	return bits;
}

static u64 run_bits(u32 at, u32 count)
{
	return ((1ULL << count) - 1) << at % WORD;
}

static void take(struct family *family, u32 at, u32 count)
{
	family->taken[at / WORD] |= run_bits(at, count);
	family->unused -= count;
}

/* The first of `count` rules side by side; NOWHERE if there are none. */
u32 take_rules(struct family *family, u32 count)
{
	u32 words = (family->rule_count + WORD - 1) / WORD;
	bool is_leading = true;

	for (u32 word = family->hint / WORD; word < words; word++) {
		u64 unused = ~family->taken[word], found = beginnings(unused, count);
		u32 at = word * WORD + __builtin_ctzll(found | 1ULL << (WORD - 1));

		if (found) {
			take(family, at, count);
			return at;
		}
		is_leading &= !unused;
		if (is_leading)
			family->hint = (word + 1) * WORD;
	}
	return NOWHERE;
}

/* Takes rules that are known to be in use. False if they can't be. */
bool reserve_rules(struct family *family, u32 at, u32 count)
{
	if (!count || count > WILDCARD_RUN || at % WORD + count > WORD ||
	    at + count > family->rule_count || family->taken[at / WORD] & run_bits(at, count))
		return false;
	take(family, at, count);
	return true;
}

void free_rules(struct family *family, u32 at, u32 count)
{
	family->taken[at / WORD] &= ~run_bits(at, count);
	family->unused += count;
	if (at < family->hint)
		family->hint = at;
}

static u8 *block(struct family *family, u32 at)
{
	return &family->orders[at >> MIN_ORDER];
}

/* Halves a free block until one of the wanted order begins at `wanted`. */
static void split(struct family *family, u32 at, u32 wanted, u32 order)
{
	while ((*block(family, at) & ~FREE_BLOCK) > order) {
		u32 smaller = (*block(family, at) & ~FREE_BLOCK) - 1;

		*block(family, at) = FREE_BLOCK | smaller;
		*block(family, at + (1U << smaller)) = FREE_BLOCK | smaller;
		if (wanted >= at + (1U << smaller))
			at += 1U << smaller;
	}
	*block(family, at) = order;
	family->unused_slots -= 1U << order;
}

/*
 * The first of 2^order slots, of the smallest free block that has them; NOWHERE if
 * there is none, or if less than `keep` would be left.
 */
u32 take_slots(struct family *family, u32 order, u32 keep)
{
	u32 best = NOWHERE, best_order = MAX_ORDERS;

	if (family->unused_slots < (1U << order) + keep)
		return NOWHERE;
	for (u32 at = 0; at < family->slot_count; at += 1U << (*block(family, at) & ~FREE_BLOCK)) {
		u32 has = *block(family, at) & ~FREE_BLOCK;

		if (*block(family, at) & FREE_BLOCK && has >= order && has < best_order) {
			best = at;
			best_order = has;
		}
	}
	if (best != NOWHERE)
		split(family, best, best, order);
	return best;
}

/* Takes slots that are known to be in use. False if they can't be. */
bool reserve_slots(struct family *family, u32 at, u32 order)
{
	if (order < MIN_ORDER || order >= MAX_ORDERS || at & ((1U << order) - 1))
		return false;
	for (u32 from = 0; from < family->slot_count;) {
		u32 has = *block(family, from) & ~FREE_BLOCK;

		if (at < from + (1U << has)) {
			if (!(*block(family, from) & FREE_BLOCK) || has < order)
				return false;
			split(family, from, at, order);
			return true;
		}
		from += 1U << has;
	}
	return false;
}

/* Frees the block that begins there, and joins it with its free neighbours. */
void free_slots(struct family *family, u32 at)
{
	u32 order = *block(family, at);

	family->unused_slots += 1U << order;
	for (;;) {
		u32 buddy = at ^ 1U << order;

		if (buddy >= family->slot_count || *block(family, buddy) != (FREE_BLOCK | order))
			break;
		at &= ~(1U << order);
		order++;
	}
	*block(family, at) = FREE_BLOCK | order;
}
