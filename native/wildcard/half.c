/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Python calls: open a half, and insert, replace, delete, list its rules.
 *
 * Each function leaves the table whole whatever it returns. One caller at a time.
 */
#include <stdlib.h>
#include <string.h>

#include "wildcard/wildcard.h"

/* ---- open and close ---- */

PUBLIC void towpath_wildcard_close(struct half *half)
{
	if (!half)
		return;
	free(half->directory.places);
	free(half->taken);
	free(half->orders);
	free(half->replaced);
	free(half->scratch);
	free(half->retired);
	free(half);
}

/* Blocks as large as their alignment allows, until all slots are in one. */
static void start_slots(struct half *half)
{
	for (u32 at = 0, order; at < half->slot_count; at += 1U << order) {
		order = at ? __builtin_ctz(at) : MAX_ORDERS - 1;
		while (at + (1ULL << order) > half->slot_count)
			order--;
		half->orders[at >> MIN_ORDER] = order;
		free_slots(half, at);
	}
}

/* Rule 0 is what a packet gets that matches none. */
static void start_rules(struct half *half)
{
	u32 words = (half->rule_count + 63) / 64;

	half->unused = half->rule_count;
	reserve_rules(half, 0, 1);
	if (half->rule_count % 64)
		half->taken[words - 1] |= ~0ULL << half->rule_count % 64;
}

static bool allocate(struct half *half)
{
	half->taken = calloc((half->rule_count + 63) / 64, sizeof(u64));
	half->orders = calloc(half->slot_count >> MIN_ORDER, 1);
	half->scratch = malloc(sizeof(*half->scratch));
	return half->taken && half->orders && half->scratch && reserve_place(half) &&
	       reserve_retired(half, 1);
}

/* A table that nobody has opened yet: the first multiplier says last that it is ready. */
static void initialize(struct half *half, const u64 *multipliers)
{
	struct wildcard_index *index = half->index;
	bool is_v4 = half->words == WILDCARD_WORDS_V4;

	/* Bits 8 to 20 of an IPv4 address, 32 to 44 of an IPv6 one: until rules come. */
	index->source = (struct wildcard_window){ 0, is_v4 ? 43 : 19 };
	index->destination = (struct wildcard_window){ 0, is_v4 ? 11 : 19 };
	for (u32 i = MAX_WORDS + 1; i-- > 0;)
		publish(&index->multipliers[i], multipliers[i] | 1);
}

/*
 * A half over its three arrays, with whatever is in them. `slot_count` is a multiple
 * of 8, `multipliers` are six random numbers. NULL with a status if that fails.
 */
PUBLIC struct half *towpath_wildcard_open(u32 words, struct wildcard_index *index, u64 *slots,
					  u32 slot_count, u64 *rules, u32 rule_count,
					  const u64 *multipliers, int *status)
{
	struct half *half = calloc(1, sizeof(*half));

	*status = NO_MEMORY;
	if (!half)
		return NULL;
	half->words = words;
	half->rule_words = (words == WILDCARD_WORDS_V4 ? sizeof(struct wildcard_rule4)
						       : sizeof(struct wildcard_rule6)) /
			   sizeof(u64);
	half->limit = ((u64)(rule_count - WILDCARD_SPARE) * 4 + 3) / 5; /* WILDCARD_RULES_ROOM */
	half->index = index;
	half->slots = slots;
	half->slot_count = slot_count;
	half->rules = rules;
	half->rule_count = rule_count;
	if (allocate(half)) {
		start_slots(half);
		start_rules(half);
		if (!index->multipliers[0])
			initialize(half, multipliers);
		*status = adopt(half);
	}
	if (*status == DONE)
		return half;
	towpath_wildcard_close(half);
	return NULL;
}

/* ---- insert ---- */

/*
 * Slots for one run more, twice as many if half of them are taken. A tuple that can't
 * have them works all the same, if slower, unless there will be some when what is
 * retired is freed.
 */
static int give_slots(struct half *half, u32 bit)
{
	u32 order = order_of(tuple_at(half, bit)->place), runs = half->tuples[bit].runs;
	int status;

	if (2 * runs < 1U << order)
		return DONE;
	if (!reserve_retired(half, runs + MAX_RETIRED + 1))
		return NO_MEMORY;
	status = resize_tuple(half, bit, order + 1);
	return status == NO_SPACE && !half->retired_count ? DONE : status;
}

/* Publishes a rule in a tuple that has been chosen, and says where. */
int publish_in(struct half *half, u32 bit, const struct wildcard_rule *rule, struct place *place)
{
	u64 hash = hash_in(half, bit, bits_of(rule));
	int status = give_slots(half, bit);

	if (status == DONE && count_in_run(half, bit, hash) >= WILDCARD_RUN)
		status = TOO_COMPLEX;
	if (status == DONE) {
		widen(half, bit, rule);
		raise_top(half, bit, rule->rank);
		status = add_to_run(half, bit, hash, rule);
	}
	if (status != DONE) {
		if (!half->tuples[bit].rules)
			empty_tuple(half, bit);
		return status;
	}
	use_device(half, rule, 1);
	*place = (struct place){ number_of(rule), hash, bit, rule->version };
	return DONE;
}

/* For one change. It moves places, so that none may be known before. */
bool prepare_change(struct half *half)
{
	return reserve_place(half) && reserve_replaced(half) && reserve_retired(half, MAX_RETIRED);
}

static int insert_one(struct half *half, const struct wildcard_rule *rule)
{
	struct place place;
	int status;

	if (half->directory.count >= half->limit)
		return FULL;
	if (!prepare_change(half))
		return NO_MEMORY;
	status = choose_tuple(half, rule);
	if (status >= 0)
		status = publish_in(half, status, rule, &place);
	if (status == DONE)
		*add_place(half, place.number) = place;
	return status;
}

/*
 * Fits the windows to rules that are to come. To be called on a half without rules, and
 * before the first of them is inserted packets have to be waited for: one that goes by
 * an old window would find some rules and not others. Returns whether they are others.
 */
PUBLIC int towpath_wildcard_fit(struct half *half, const u64 *rules, u32 count)
{
	return !half->directory.count && choose_windows(half, rules, count);
}

/* Inserts rules one after the other; *done says how many, whatever is returned. */
PUBLIC int towpath_wildcard_insert(struct half *half, const u64 *rules, u32 count, u32 *done)
{
	for (*done = 0; *done < count; ++*done) {
		int status =
			insert_one(half, (const void *)(rules + (size_t)*done * half->rule_words));

		if (status != DONE)
			return status;
	}
	return DONE;
}

/* ---- delete ---- */

int withdraw(struct half *half, const struct place *place)
{
	const struct wildcard_rule *rule = find_in_run(half, place);
	int status = take_from_run(half, place);

	if (status != DONE)
		return status;
	use_device(half, rule, -1); /* retired, and so still there */
	if (half->tuples[place->tuple].rules)
		forget(half, place->tuple);
	else
		empty_tuple(half, place->tuple);
	return DONE;
}

static int delete_one(struct half *half, u64 number)
{
	struct place *place;
	int status;

	if (!prepare_change(half))
		return NO_MEMORY;
	place = find_place(half, number);
	if (!place)
		return NO_SUCH_RULE;
	status = withdraw(half, place);
	if (status == DONE)
		remove_place(half, place);
	return status;
}

/* Deletes rules by number, one after the other; *done as above. */
PUBLIC int towpath_wildcard_delete(struct half *half, const u64 *numbers, u32 count, u32 *done)
{
	for (*done = 0; *done < count; ++*done) {
		int status = delete_one(half, numbers[*done]);

		if (status != DONE)
			return status;
	}
	return DONE;
}

/* ---- values ---- */

/* Gives a rule another value, in one store. */
PUBLIC int towpath_wildcard_set_value(struct half *half, u64 number, u64 value)
{
	struct place *place = find_place(half, number);

	if (!place)
		return NO_SUCH_RULE;
	publish(&find_in_run(half, place)->value, value);
	return DONE;
}
