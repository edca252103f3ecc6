/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes over a table whose writer has ended, at whatever point it did.
 *
 * Everything that packets can reach is whole: each change was one store. What can
 * be left of a change that wasn't finished is taken care of here:
 *
 *  - room that was taken and that nothing leads to: free, since room that is in use
 *    is found by what leads to it;
 *  - a rule in two versions: the older one goes;
 *  - bits too many in columns, and tops too high: made to fit;
 *  - a tuple without rules: no packet looks into it.
 */
#include "wildcard/wildcard.h"

/* Notes where a rule is. A version that is older than another goes on the list. */
static int adopt_rule(struct family *family, u32 bit, u64 hash, const struct wildcard_rule *rule)
{
	struct place here = { number_of(rule), hash, bit, rule->version };
	struct place *known;

	if (!here.number || !reserve_place(family) || !reserve_replaced(family))
		return here.number ? NO_MEMORY : DAMAGED;
	use_device(family, rule, 1);
	family->tuples[bit].rules++;
	known = find_place(family, here.number);
	if (!known) {
		*add_place(family, here.number) = here;
		return DONE;
	}
	if (known->version == here.version)
		return DAMAGED;
	if (known->version < here.version) {
		family->replaced[family->replaced_count++] = *known;
		*known = here;
	} else {
		family->replaced[family->replaced_count++] = here;
	}
	return DONE;
}

static int adopt_run(struct family *family, u32 bit, u32 at, u64 slot)
{
	u64 place = tuple_at(family, bit)->place;

	if (!reserve_rules(family, run_first(slot), run_count(slot)))
		return DAMAGED;
	family->tuples[bit].runs++;
	for (u32 i = 0; i < run_count(slot); i++) {
		const struct wildcard_rule *rule = rule_at(family, run_first(slot) + i);
		u64 hash = hash_in(family, bit, bits_of(rule));
		int status;

		if (slot_of(place, hash) != at ||
		    !is_within(family, mask_of(family, rule), tuple_at(family, bit)->mask))
			return DAMAGED;
		status = adopt_rule(family, bit, hash, rule);
		if (status != DONE)
			return status;
	}
	return DONE;
}

static int adopt_tuple(struct family *family, u32 bit)
{
	u64 place = tuple_at(family, bit)->place;
	u32 size = place_size(place);

	if (!size || size & (size - 1) ||
	    !reserve_slots(family, place_first(place), __builtin_ctz(size)))
		return DAMAGED;
	family->tuples[bit] = (struct tuple){ .used = true, .live = true };
	for (u32 at = place_first(place); at < place_first(place) + size; at++) {
		int status =
			family->slots[at] ? adopt_run(family, bit, at, family->slots[at]) : DONE;

		if (status != DONE)
			return status;
	}
	return DONE;
}

static bool is_valid_window(const struct family *family, const struct wildcard_window *window)
{
	return window->shift < 64 && window->word <= (family->words == WILDCARD_WORDS_V6);
}

static void tidy_tuple(struct family *family, u32 bit)
{
	if (family->tuples[bit].rules)
		refit(family, bit);
	else if (family->tuples[bit].live)
		empty_tuple(family, bit);
	else
		clear_columns(family, bit);
}

/* Finds everything that is in the arrays. To be called on a family that knows nothing. */
int adopt(struct family *family)
{
	int status = adopt_devices(family);

	if (!is_valid_window(family, &family->index->source) ||
	    !is_valid_window(family, &family->index->destination))
		return DAMAGED;
	for (u32 bit = 0; bit < WILDCARD_TUPLES && status == DONE; bit++)
		if (tuple_at(family, bit)->place)
			status = adopt_tuple(family, bit);
	if (status == DONE)
		status = towpath_wildcard_finish(family);
	for (u32 bit = 0; bit < WILDCARD_TUPLES && status == DONE; bit++)
		tidy_tuple(family, bit);
	return status;
}
