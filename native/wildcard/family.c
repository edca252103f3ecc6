/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Python calls: open a family, and insert, replace, delete, list its rules.
 *
 * Each function leaves the table whole whatever it returns. One caller at a time.
 */
#include <stdlib.h>
#include <string.h>

#include "wildcard/wildcard.h"

/* ---- open and close ---- */

PUBLIC void towpath_wildcard_close(struct family *family)
{
	if (!family)
		return;
	free(family->directory.places);
	free(family->taken);
	free(family->orders);
	free(family->replaced);
	free(family->scratch);
	free(family->retired);
	free(family);
}

/* Blocks as large as their alignment allows, until all slots are in one. */
static void start_slots(struct family *family)
{
	for (u32 at = 0, order; at < family->slot_count; at += 1U << order) {
		order = at ? __builtin_ctz(at) : MAX_ORDERS - 1;
		while (at + (1ULL << order) > family->slot_count)
			order--;
		family->orders[at >> MIN_ORDER] = order;
		free_slots(family, at);
	}
}

/* Rule 0 is what a packet gets that matches none. */
static void start_rules(struct family *family)
{
	u32 words = (family->rule_count + 63) / 64;

	family->unused = family->rule_count;
	reserve_rules(family, 0, 1);
	if (family->rule_count % 64)
		family->taken[words - 1] |= ~0ULL << family->rule_count % 64;
}

static bool allocate(struct family *family)
{
	family->taken = calloc((family->rule_count + 63) / 64, sizeof(u64));
	family->orders = calloc(family->slot_count >> MIN_ORDER, 1);
	family->scratch = malloc(sizeof(*family->scratch));
	return family->taken && family->orders && family->scratch && reserve_place(family) &&
	       reserve_retired(family, 1);
}

/* A table that nobody has opened yet: the first multiplier says last that it is ready. */
static void initialize(struct family *family, const u64 *multipliers)
{
	struct wildcard_index *index = family->index;
	bool is_v4 = family->words == WILDCARD_WORDS_V4;

	/* Bits 8 to 20 of an IPv4 address, 32 to 44 of an IPv6 one: until rules come. */
	index->source = (struct wildcard_window){ 0, is_v4 ? 43 : 19 };
	index->destination = (struct wildcard_window){ 0, is_v4 ? 11 : 19 };
	for (u32 i = MAX_WORDS + 1; i-- > 0;)
		publish(&index->multipliers[i], multipliers[i] | 1);
}

/*
 * A family over its three arrays, with whatever is in them. `slot_count` is a multiple
 * of 8, `multipliers` are six random numbers. NULL with a status if that fails.
 */
PUBLIC struct family *towpath_wildcard_open(u32 words, struct wildcard_index *index, u64 *slots,
					    u32 slot_count, u64 *rules, u32 rule_count,
					    const u64 *multipliers, int *status)
{
	struct family *family = calloc(1, sizeof(*family));

	*status = NO_MEMORY;
	if (!family)
		return NULL;
	family->words = words;
	family->rule_words = (words == WILDCARD_WORDS_V4 ? sizeof(struct wildcard_rule4)
							 : sizeof(struct wildcard_rule6)) /
			     sizeof(u64);
	family->limit = ((u64)(rule_count - WILDCARD_SPARE) * 4 + 3) / 5; /* WILDCARD_RULES_ROOM */
	family->index = index;
	family->slots = slots;
	family->slot_count = slot_count;
	family->rules = rules;
	family->rule_count = rule_count;
	if (allocate(family)) {
		start_slots(family);
		start_rules(family);
		if (!index->multipliers[0])
			initialize(family, multipliers);
		*status = adopt(family);
	}
	if (*status == DONE)
		return family;
	towpath_wildcard_close(family);
	return NULL;
}

/* ---- insert ---- */

/*
 * Slots for one run more, twice as many if half of them are taken. A tuple that can't
 * have them works all the same, if slower, unless there will be some when what is
 * retired is freed.
 */
static int give_slots(struct family *family, u32 bit)
{
	u32 order = order_of(tuple_at(family, bit)->place), runs = family->tuples[bit].runs;
	int status;

	if (2 * runs < 1U << order)
		return DONE;
	if (!reserve_retired(family, runs + MAX_RETIRED + 1))
		return NO_MEMORY;
	status = resize_tuple(family, bit, order + 1);
	return status == NO_SPACE && !family->retired_count ? DONE : status;
}

/* Publishes a rule in a tuple that has been chosen, and says where. */
int publish_in(struct family *family, u32 bit, const struct wildcard_rule *rule,
	       struct place *place)
{
	u64 hash = hash_in(family, bit, bits_of(rule));
	int status = give_slots(family, bit);

	if (status == DONE && count_in_run(family, bit, hash) >= WILDCARD_RUN)
		status = TOO_COMPLEX;
	if (status == DONE) {
		widen(family, bit, rule);
		raise_top(family, bit, rule->rank);
		status = add_to_run(family, bit, hash, rule);
	}
	if (status != DONE) {
		if (!family->tuples[bit].rules)
			empty_tuple(family, bit);
		return status;
	}
	use_device(family, rule, 1);
	*place = (struct place){ number_of(rule), hash, bit, rule->version };
	return DONE;
}

/* For one change. It moves places, so that none may be known before. */
bool prepare_change(struct family *family)
{
	return reserve_place(family) && reserve_replaced(family) &&
	       reserve_retired(family, MAX_RETIRED);
}

static int insert_one(struct family *family, const struct wildcard_rule *rule)
{
	struct place place;
	int status;

	if (family->directory.count >= family->limit)
		return FULL;
	if (!prepare_change(family))
		return NO_MEMORY;
	status = choose_tuple(family, rule);
	if (status >= 0)
		status = publish_in(family, status, rule, &place);
	if (status == DONE)
		*add_place(family, place.number) = place;
	return status;
}

/*
 * Fits the windows to rules that are to come. To be called on a family without rules, and
 * before the first of them is inserted packets have to be waited for: one that goes by
 * an old window would find some rules and not others. Returns whether they are others.
 */
PUBLIC int towpath_wildcard_fit(struct family *family, const u64 *rules, u32 count)
{
	return !family->directory.count && choose_windows(family, rules, count);
}

/* Inserts rules one after the other; *done says how many, whatever is returned. */
PUBLIC int towpath_wildcard_insert(struct family *family, const u64 *rules, u32 count, u32 *done)
{
	for (*done = 0; *done < count; ++*done) {
		int status = insert_one(family,
					(const void *)(rules + (size_t)*done * family->rule_words));

		if (status != DONE)
			return status;
	}
	return DONE;
}

/* ---- delete ---- */

int withdraw(struct family *family, const struct place *place)
{
	const struct wildcard_rule *rule = find_in_run(family, place);
	int status = take_from_run(family, place);

	if (status != DONE)
		return status;
	use_device(family, rule, -1); /* retired, and so still there */
	if (family->tuples[place->tuple].rules)
		forget(family, place->tuple);
	else
		empty_tuple(family, place->tuple);
	return DONE;
}

static int delete_one(struct family *family, u64 number)
{
	struct place *place;
	int status;

	if (!prepare_change(family))
		return NO_MEMORY;
	place = find_place(family, number);
	if (!place)
		return NO_SUCH_RULE;
	status = withdraw(family, place);
	if (status == DONE)
		remove_place(family, place);
	return status;
}

/* Deletes rules by number, one after the other; *done as above. */
PUBLIC int towpath_wildcard_delete(struct family *family, const u64 *numbers, u32 count, u32 *done)
{
	for (*done = 0; *done < count; ++*done) {
		int status = delete_one(family, numbers[*done]);

		if (status != DONE)
			return status;
	}
	return DONE;
}

/* ---- values ---- */

/* Gives a rule another value, in one store. */
PUBLIC int towpath_wildcard_set_value(struct family *family, u64 number, u64 value)
{
	struct place *place = find_place(family, number);

	if (!place)
		return NO_SUCH_RULE;
	publish(&find_in_run(family, place)->value, value);
	return DONE;
}
