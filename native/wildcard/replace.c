/* SPDX-License-Identifier: Apache-2.0 */
/* One rule in the place of another. */
#include <stdlib.h>

#include "wildcard/wildcard.h"

bool reserve_replaced(struct family *family)
{
	u32 room = family->replaced_room ? 2 * family->replaced_room : 16;
	struct place *larger;

	if (family->replaced_count < family->replaced_room)
		return true;
	larger = realloc(family->replaced, room * sizeof(*larger));
	if (!larger)
		return false;
	family->replaced = larger;
	family->replaced_room = room;
	return true;
}

static bool stays_in_slot(struct family *family, const struct place *place,
			  const struct wildcard_rule *rule)
{
	u64 at = tuple_at(family, place->tuple)->place;

	return is_within(family, mask_of(family, rule), tuple_at(family, place->tuple)->mask) &&
	       slot_of(at, hash_in(family, place->tuple, bits_of(rule))) ==
		       slot_of(at, place->hash);
}

static int change_in_place(struct family *family, struct place *place,
			   const struct wildcard_rule *rule)
{
	const struct wildcard_rule *old = find_in_run(family, place);
	int status;

	widen(family, place->tuple, rule);
	raise_top(family, place->tuple, rule->rank);
	status = change_in_run(family, place, rule);
	if (status != DONE)
		return status;
	use_device(family, rule, 1);
	use_device(family, old, -1);
	place->hash = hash_in(family, place->tuple, bits_of(rule));
	place->version = rule->version;
	forget(family, place->tuple);
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
PUBLIC int towpath_wildcard_replace(struct family *family, const struct wildcard_rule *rule)
{
	struct place *place, new;
	int status;

	if (!prepare_change(family))
		return NO_MEMORY;
	place = find_place(family, number_of(rule));
	if (!place)
		return NO_SUCH_RULE;
	if (stays_in_slot(family, place, rule))
		return change_in_place(family, place, rule);
	status = choose_tuple(family, rule);
	if (status >= 0)
		status = publish_in(family, status, rule, &new);
	if (status != DONE)
		return status;
	family->replaced[family->replaced_count++] = *place;
	*place = new;
	return PENDING;
}

/* Withdraws the rules that have been replaced, when packets have been waited for. */
PUBLIC int towpath_wildcard_finish(struct family *family)
{
	while (family->replaced_count) {
		int status =
			reserve_retired(family, MAX_RETIRED)
				? withdraw(family, &family->replaced[family->replaced_count - 1])
				: NO_MEMORY;

		if (status != DONE)
			return status;
		family->replaced_count--;
	}
	return DONE;
}
