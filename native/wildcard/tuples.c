/* SPDX-License-Identifier: Apache-2.0 */
/* Tuples: hash tables of rules whose masks have some bits in common. */
#include <string.h>

#include "wildcard/wildcard.h"

u64 hash_in(const struct family *family, u32 bit, const u64 *bits)
{
	const u64 *mask = tuple_at(family, bit)->mask, *by = family->index->multipliers;
	u64 hash = 0;

	for (u32 i = 0; i < family->words; i++)
		hash += (bits[i] & mask[i]) * by[i];
	return (hash ^ hash >> 32) * by[MAX_WORDS];
}

/* Whether what matches `mask` agrees in all bits of `wider`. */
bool is_within(const struct family *family, const u64 *mask, const u64 *wider)
{
	for (u32 i = 0; i < family->words; i++)
		if (wider[i] & ~mask[i])
			return false;
	return true;
}

/*
 * Lets go of all tuples without rules: they are kept as long as bits are left, since
 * rules like those that were there may come again. False if there are none.
 */
static bool retire_empty(struct family *family)
{
	bool any = false;

	if (!reserve_retired(family, 2 * WILDCARD_TUPLES))
		return false;
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		struct tuple *tuple = &family->tuples[bit];

		if (!tuple->live || tuple->rules)
			continue;
		tuple->live = false;
		retire(family, RETIRED_SLOTS, place_first(tuple_at(family, bit)->place), 0);
		retire(family, RETIRED_TUPLE, bit, 0);
		any = true;
	}
	return any;
}

/* Makes a tuple without rules, whose bit is set nowhere; or returns a status. */
int make_tuple(struct family *family, const u64 *mask)
{
	struct wildcard_tuple *tuple;
	u32 bit = 0, first;

	while (bit < WILDCARD_TUPLES && family->tuples[bit].used)
		bit++;
	if (bit == WILDCARD_TUPLES)
		return retire_empty(family) || family->retired_count ? NO_SPACE : TOO_COMPLEX;
	first = take_slots(family, MIN_ORDER, 0);
	if (first == NOWHERE)
		return NO_SPACE;
	memset(family->slots + first, 0, sizeof(u64) << MIN_ORDER);
	tuple = tuple_at(family, bit);
	memcpy(tuple->mask, mask, family->words * sizeof(*mask));
	publish(&tuple->place, make_place(first, MIN_ORDER));
	family->tuples[bit] = (struct tuple){ .used = true, .live = true };
	return bit;
}

/*
 * To be called when a tuple's last rule has gone: no packet looks into it any more.
 * Those that are about to still find its slots, which are empty.
 */
void empty_tuple(struct family *family, u32 bit)
{
	clear_columns(family, bit);
	publish(&tuple_at(family, bit)->top, 0);
	refit_ceilings(family);
	family->tuples[bit].removals = 0;
	shrink_tuple(family, bit);
}
