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
static int adopt_rule(struct half *half, u32 bit, u64 hash, const struct wildcard_rule *rule)
{
	struct place here = { number_of(rule), hash, bit, rule->version };
	struct place *known;

	if (!here.number || !reserve_place(half) || !reserve_replaced(half))
		return here.number ? NO_MEMORY : DAMAGED;
	use_device(half, rule, 1);
	half->tuples[bit].rules++;
	known = find_place(half, here.number);
	if (!known) {
		*add_place(half, here.number) = here;
		return DONE;
	}
	if (known->version == here.version)
		return DAMAGED;
	if (known->version < here.version) {
		half->replaced[half->replaced_count++] = *known;
		*known = here;
	} else {
		half->replaced[half->replaced_count++] = here;
	}
	return DONE;
}

static int adopt_run(struct half *half, u32 bit, u32 at, u64 slot)
{
	u64 place = tuple_at(half, bit)->place;

	if (!reserve_rules(half, run_first(slot), run_count(slot)))
		return DAMAGED;
	half->tuples[bit].runs++;
	for (u32 i = 0; i < run_count(slot); i++) {
		const struct wildcard_rule *rule = rule_at(half, run_first(slot) + i);
		u64 hash = hash_in(half, bit, bits_of(rule));
		int status;

		if (slot_of(place, hash) != at ||
		    !is_within(half, mask_of(half, rule), tuple_at(half, bit)->mask))
			return DAMAGED;
		status = adopt_rule(half, bit, hash, rule);
		if (status != DONE)
			return status;
	}
	return DONE;
}

static int adopt_tuple(struct half *half, u32 bit)
{
	u64 place = tuple_at(half, bit)->place;
	u32 size = place_size(place);

	if (!size || size & (size - 1) ||
	    !reserve_slots(half, place_first(place), __builtin_ctz(size)))
		return DAMAGED;
	half->tuples[bit] = (struct tuple){ .used = true, .live = true };
	for (u32 at = place_first(place); at < place_first(place) + size; at++) {
		int status = half->slots[at] ? adopt_run(half, bit, at, half->slots[at]) : DONE;

		if (status != DONE)
			return status;
	}
	return DONE;
}

static bool is_valid_window(const struct half *half, const struct wildcard_window *window)
{
	return window->shift < 64 && window->word <= (half->words == WILDCARD_WORDS_V6);
}

static void tidy_tuple(struct half *half, u32 bit)
{
	if (half->tuples[bit].rules)
		refit(half, bit);
	else if (half->tuples[bit].live)
		empty_tuple(half, bit);
	else
		clear_columns(half, bit);
}

/* Finds everything that is in the arrays. To be called on a half that knows nothing. */
int adopt(struct half *half)
{
	int status = adopt_devices(half);

	if (!is_valid_window(half, &half->index->source) ||
	    !is_valid_window(half, &half->index->destination))
		return DAMAGED;
	for (u32 bit = 0; bit < WILDCARD_TUPLES && status == DONE; bit++)
		if (tuple_at(half, bit)->place)
			status = adopt_tuple(half, bit);
	if (status == DONE)
		status = towpath_wildcard_finish(half);
	for (u32 bit = 0; bit < WILDCARD_TUPLES && status == DONE; bit++)
		tidy_tuple(half, bit);
	return status;
}
