/* SPDX-License-Identifier: Apache-2.0 */
/*
 * More slots, or fewer, for a tuple.
 *
 * All slots are replaced at once: until the store of the place packets find every
 * rule by the old ones, and after it by the new ones. A run whose rules go to one
 * slot and meet no others there is used by both; all others are copied.
 */
#include <string.h>

#include "wildcard/wildcard.h"

/* Slots that are kept for new tuples: these must never fail for want of room. */
static const u32 KEEP = WILDCARD_TUPLES << MIN_ORDER;

/* Rules that go to one slot. */
struct gathering {
	const struct wildcard_rule *rules[WILDCARD_RUN];
	u32 count;
	u32 runs;  /* that they come from */
	u64 whole; /* the last of these, if all of its rules are here */
};

/* Adds those rules of a run that go to a slot. False if they are too many. */
static bool gather(struct family *family, u32 bit, u64 run, u32 slot, u32 mask,
		   struct gathering *to)
{
	u32 before = to->count;

	for (u32 i = 0; i < run_count(run); i++) {
		const struct wildcard_rule *rule = rule_at(family, run_first(run) + i);

		if (((u32)(hash_in(family, bit, bits_of(rule)) >> WILDCARD_SLOT) & mask) != slot)
			continue;
		if (to->count == WILDCARD_RUN)
			return false;
		to->rules[to->count++] = rule;
	}
	if (to->count == before)
		return true;
	to->runs++;
	to->whole = to->count == run_count(run) ? run : 0;
	return true;
}

static void sort_by_rank(struct gathering *g)
{
	for (u32 i = 1; i < g->count; i++) {
		const struct wildcard_rule *rule = g->rules[i];
		u32 to = i;

		for (; to && g->rules[to - 1]->rank < rule->rank; to--)
			g->rules[to] = g->rules[to - 1];
		g->rules[to] = rule;
	}
}

/* Fills a new slot from the old ones that lead to it. */
static bool fill_slot(struct family *family, u32 bit, const u64 *old, u32 old_size, u64 *new,
		      u32 new_size, u32 slot)
{
	struct gathering g = { .count = 0 };

	for (u32 from = slot & (old_size - 1); from < old_size; from += new_size)
		if (old[from] && !gather(family, bit, old[from], slot, new_size - 1, &g))
			return false;
	if (!g.count)
		return true;
	if (g.runs == 1 && g.whole) {
		new[slot] = g.whole;
		return true;
	}
	sort_by_rank(&g);
	new[slot] = make_run(family, bit, g.rules, g.count);
	return new[slot];
}

/* Whether a run, that of some slot, is used in `slots` as it is. */
static bool is_shared(u64 run, u32 at, const u64 *slots, u32 size, u32 step)
{
	for (at &= size - 1; at < size; at += step)
		if (slots[at] == run)
			return true;
	return false;
}

/* What of `slots` isn't in `others` is retired, or is free at once if packets never saw it. */
static void drop_runs(struct family *family, const u64 *slots, u32 size, const u64 *others,
		      u32 others_size, bool was_seen)
{
	for (u32 at = 0; at < size; at++) {
		if (!slots[at] || is_shared(slots[at], at, others, others_size, size))
			continue;
		if (was_seen)
			retire(family, RETIRED_RULES, run_first(slots[at]), run_count(slots[at]));
		else
			free_rules(family, run_first(slots[at]), run_count(slots[at]));
	}
}

static u32 count_runs(const u64 *slots, u32 size)
{
	u32 runs = 0;

	for (u32 at = 0; at < size; at++)
		runs += !!slots[at];
	return runs;
}

/* Gives a tuple 2^order slots, or returns NO_SPACE and leaves it as it is. */
int resize_tuple(struct family *family, u32 bit, u32 order)
{
	u64 place = tuple_at(family, bit)->place, *old = family->slots + place_first(place), *new;
	u32 old_size = place_size(place), size = 1U << order;
	u32 first = take_slots(family, order, KEEP);

	if (first == NOWHERE)
		return NO_SPACE;
	new = family->slots + first;
	memset(new, 0, size * sizeof(*new));
	for (u32 slot = 0; slot < size; slot++) {
		if (fill_slot(family, bit, old, old_size, new, size, slot))
			continue;
		drop_runs(family, new, size, old, old_size, false);
		free_slots(family, first);
		return NO_SPACE;
	}
	publish(&tuple_at(family, bit)->place, make_place(first, order));
	drop_runs(family, old, old_size, new, size, true);
	retire(family, RETIRED_SLOTS, place_first(place), 0);
	family->tuples[bit].runs = count_runs(new, size);
	return DONE;
}

/* Gives up slots that a tuple has far too many of. No matter if it can't. */
void shrink_tuple(struct family *family, u32 bit)
{
	u32 order = order_of(tuple_at(family, bit)->place), runs = family->tuples[bit].runs;

	if (order == MIN_ORDER || 16 * runs >= 1U << order)
		return;
	while (order > MIN_ORDER && 4 * runs < 1U << order)
		order--;
	if (reserve_retired(family, runs + MAX_RETIRED + 1))
		resize_tuple(family, bit, order);
}
