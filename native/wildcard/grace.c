/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What packets may still be reading, kept until somebody has waited for them.
 *
 * The wait itself is user space's: it takes milliseconds, and is done for many
 * changes at once, when nothing else is left to use.
 */
#include <stdlib.h>

#include "wildcard/wildcard.h"

/* Room for so many more; made before a change, which can't stop half way. */
bool reserve_retired(struct family *family, u32 count)
{
	u32 capacity = family->retired_capacity ? family->retired_capacity : 64;
	struct retired *larger;

	if (family->retired_count + count <= family->retired_capacity)
		return true;
	while (capacity < family->retired_count + count)
		capacity *= 2;
	larger = realloc(family->retired, capacity * sizeof(*larger));
	if (!larger)
		return false;
	family->retired = larger;
	family->retired_capacity = capacity;
	return true;
}

void retire(struct family *family, int kind, u32 at, u32 count)
{
	family->retired[family->retired_count++] = (struct retired){ kind, at, count };
}

/* Frees all that is retired. To be called when packets that began before are through. */
PUBLIC void towpath_wildcard_reclaim(struct family *family)
{
	for (struct retired *r = family->retired; r < family->retired + family->retired_count;
	     r++) {
		switch (r->kind) {
		case RETIRED_RULES:
			free_rules(family, r->at, r->count);
			break;
		case RETIRED_SLOTS:
			free_slots(family, r->at);
			break;
		case RETIRED_TUPLE:
			publish(&tuple_at(family, r->at)->place, 0);
			family->tuples[r->at].used = false;
			break;
		case RETIRED_DEVICE:
			family->device_taken[r->at] = false;
			break;
		}
	}
	family->retired_count = 0;
}
