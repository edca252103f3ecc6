/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs: rules that share a slot, in order of falling rank, side by side.
 *
 * A packet reads the slot once and then the run that it says. So a run isn't
 * changed: another one is made, published by one store into the slot, and the old
 * one is retired.
 */
#include <string.h>

#include "wildcard/wildcard.h"

static u64 *slot_in(const struct family *family, u32 bit, u64 hash)
{
	return family->slots + slot_of(tuple_at(family, bit)->place, hash);
}

u32 count_in_run(const struct family *family, u32 bit, u64 hash)
{
	return run_count(*slot_in(family, bit, hash));
}

/* A run of copies, which nothing leads to yet. 0 = no room. */
u64 make_run(struct family *family, u32 bit, const struct wildcard_rule *const *rules, u32 count)
{
	u32 first = take_rules(family, count);
	u64 marks = 0;

	if (first == NOWHERE)
		return 0;
	for (u32 i = 0; i < count; i++) {
		memcpy(rule_at(family, first + i), rules[i], family->rule_words * sizeof(u64));
		marks |= 1ULL << (hash_in(family, bit, bits_of(rules[i])) >> WILDCARD_MARK);
	}
	return marks << WILDCARD_MARKS | (u64)count << WILDCARD_COUNT | first;
}

/* The rules of a run without one (NOWHERE: with all) and with another (NULL: none). */
static u32 list_rules(struct family *family, u64 run, u32 without, const struct wildcard_rule *with,
		      const struct wildcard_rule **rules)
{
	u32 count = 0;

	for (u32 i = 0; i < run_count(run); i++) {
		const struct wildcard_rule *rule = rule_at(family, run_first(run) + i);

		if (with && with->rank > rule->rank) {
			rules[count++] = with;
			with = NULL;
		}
		if (i != without)
			rules[count++] = rule;
	}
	if (with)
		rules[count++] = with;
	return count;
}

/*
 * Replaces a run in one store. It is counted before: a packet that finds the count as
 * it was has seen one change at most. The caller has made room to retire one.
 */
static int replace_run(struct family *family, u32 bit, u64 *slot, u32 without,
		       const struct wildcard_rule *with)
{
	const struct wildcard_rule *rules[WILDCARD_RUN + 1];
	u32 count = list_rules(family, *slot, without, with, rules);
	u64 old = *slot, new = count ? make_run(family, bit, rules, count) : 0;

	if (count && !new)
		return NO_SPACE;
	publish(&family->index->changes, family->index->changes + 1);
	publish(slot, new);
	family->tuples[bit].runs += !!new - !!old;
	if (old)
		retire(family, RETIRED_RULES, run_first(old), run_count(old));
	return DONE;
}

/* Publishes a rule. Its tuple's run at that hash isn't full. */
int add_to_run(struct family *family, u32 bit, u64 hash, const struct wildcard_rule *rule)
{
	int status = replace_run(family, bit, slot_in(family, bit, hash), NOWHERE, rule);

	if (status == DONE)
		family->tuples[bit].rules++;
	return status;
}

/* Which rule of its run that is; NOWHERE if it isn't there. */
static u32 index_in_run(const struct family *family, const struct place *place)
{
	u64 slot = *slot_in(family, place->tuple, place->hash);

	for (u32 i = 0; i < run_count(slot); i++) {
		const struct wildcard_rule *rule = rule_at(family, run_first(slot) + i);

		if (number_of(rule) == place->number && rule->version == place->version)
			return i;
	}
	return NOWHERE;
}

/* Withdraws a rule. */
int take_from_run(struct family *family, const struct place *place)
{
	u64 *slot = slot_in(family, place->tuple, place->hash);
	int status = replace_run(family, place->tuple, slot, index_in_run(family, place), NULL);

	if (status == DONE)
		family->tuples[place->tuple].rules--;
	return status;
}

/* Replaces a rule by one that belongs into the same slot. */
int change_in_run(struct family *family, const struct place *place,
		  const struct wildcard_rule *rule)
{
	u64 *slot = slot_in(family, place->tuple, place->hash);

	return replace_run(family, place->tuple, slot, index_in_run(family, place), rule);
}

/* The rule as it is now. */
struct wildcard_rule *find_in_run(const struct family *family, const struct place *place)
{
	u64 slot = *slot_in(family, place->tuple, place->hash);

	return rule_at(family, run_first(slot) + index_in_run(family, place));
}
