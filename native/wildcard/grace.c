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
bool make_rest_room(struct half *half, u32 count)
{
	u32 room = half->resting_room ? half->resting_room : 64;
	struct resting *larger;

	if (half->resting_count + count <= half->resting_room)
		return true;
	while (room < half->resting_count + count)
		room *= 2;
	larger = realloc(half->resting, room * sizeof(*larger));
	if (!larger)
		return false;
	half->resting = larger;
	half->resting_room = room;
	return true;
}

void rest(struct half *half, int kind, u32 at, u32 count)
{
	half->resting[half->resting_count++] = (struct resting){ kind, at, count };
}

/* Frees all that rests. To be called when packets that began before are through. */
PUBLIC void towpath_wildcard_settle(struct half *half)
{
	for (struct resting *r = half->resting; r < half->resting + half->resting_count; r++) {
		switch (r->kind) {
		case REST_RULES:
			free_rules(half, r->at, r->count);
			break;
		case REST_SLOTS:
			free_slots(half, r->at);
			break;
		case REST_TUPLE:
			publish(&tuple_at(half, r->at)->place, 0);
			half->tuples[r->at].used = false;
			break;
		case REST_DEVICE:
			half->device_taken[r->at] = false;
			break;
		}
	}
	half->resting_count = 0;
}
