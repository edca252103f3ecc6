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
bool reserve_retired(struct half *half, u32 count)
{
	u32 capacity = half->retired_capacity ? half->retired_capacity : 64;
	struct retired *larger;

	if (half->retired_count + count <= half->retired_capacity)
		return true;
	while (capacity < half->retired_count + count)
		capacity *= 2;
	larger = realloc(half->retired, capacity * sizeof(*larger));
	if (!larger)
		return false;
	half->retired = larger;
	half->retired_capacity = capacity;
	return true;
}

void retire(struct half *half, int kind, u32 at, u32 count)
{
	half->retired[half->retired_count++] = (struct retired){ kind, at, count };
}

/* Frees all that is retired. To be called when packets that began before are through. */
PUBLIC void towpath_wildcard_reclaim(struct half *half)
{
	for (struct retired *r = half->retired; r < half->retired + half->retired_count; r++) {
		switch (r->kind) {
		case RETIRED_RULES:
			free_rules(half, r->at, r->count);
			break;
		case RETIRED_SLOTS:
			free_slots(half, r->at);
			break;
		case RETIRED_TUPLE:
			publish(&tuple_at(half, r->at)->place, 0);
			half->tuples[r->at].used = false;
			break;
		case RETIRED_DEVICE:
			half->device_taken[r->at] = false;
			break;
		}
	}
	half->retired_count = 0;
}
