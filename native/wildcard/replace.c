/* SPDX-License-Identifier: Apache-2.0 */
/* One rule in the place of another. */
#include <stdlib.h>

#include "wildcard/wildcard.h"

bool reserve_replaced(struct half *half)
{
	u32 room = half->replaced_room ? 2 * half->replaced_room : 16;
	struct place *larger;

	if (half->replaced_count < half->replaced_room)
		return true;
	larger = realloc(half->replaced, room * sizeof(*larger));
	if (!larger)
		return false;
	half->replaced = larger;
	half->replaced_room = room;
	return true;
}

static bool stays_in_slot(struct half *half, const struct place *place,
			  const struct wildcard_rule *rule)
{
	u64 at = tuple_at(half, place->tuple)->place;

	return is_within(half, mask_of(half, rule), tuple_at(half, place->tuple)->mask) &&
	       slot_of(at, hash_in(half, place->tuple, bits_of(rule))) == slot_of(at, place->hash);
}

static int change_in_place(struct half *half, struct place *place, const struct wildcard_rule *rule)
{
	const struct wildcard_rule *old = find_in_run(half, place);
	int status;

	widen(half, place->tuple, rule);
	raise_top(half, place->tuple, rule->rank);
	status = change_in_run(half, place, rule);
	if (status != DONE)
		return status;
	use_device(half, rule, 1);
	use_device(half, old, -1);
	place->hash = hash_in(half, place->tuple, bits_of(rule));
	place->version = rule->version;
	forget(half, place->tuple);
	return DONE;
}

/*
 * Puts a rule in the place of the one with its number, which has a lower version.
 * Where both belong into one slot that is one store, and DONE. Else both are there
 * until towpath_wildcard_finish(): PENDING. A packet then finds the better of them,
 * which is right before the change or after it. Taking the old one away at once
 * would not be: a packet that has looked in vain where the new one is now would
 * look in vain where the old one was.
 */
PUBLIC int towpath_wildcard_replace(struct half *half, const struct wildcard_rule *rule)
{
	struct place *place, new;
	int status;

	if (!prepare_change(half))
		return NO_MEMORY;
	place = find_place(half, number_of(rule));
	if (!place)
		return NO_SUCH_RULE;
	if (stays_in_slot(half, place, rule))
		return change_in_place(half, place, rule);
	status = choose_tuple(half, rule);
	if (status >= 0)
		status = publish_in(half, status, rule, &new);
	if (status != DONE)
		return status;
	half->replaced[half->replaced_count++] = *place;
	*place = new;
	return PENDING;
}

/* Withdraws the rules that have been replaced, when packets have been waited for. */
PUBLIC int towpath_wildcard_finish(struct half *half)
{
	while (half->replaced_count) {
		int status = reserve_retired(half, MAX_RETIRED)
				     ? withdraw(half, &half->replaced[half->replaced_count - 1])
				     : NO_MEMORY;

		if (status != DONE)
			return status;
		half->replaced_count--;
	}
	return DONE;
}
