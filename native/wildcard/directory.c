/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the number of a rule to where it is: open addressing, linear probing.
 *
 * Packets don't see it, so it needs none of the care that the arrays do.
 */
#include <stdlib.h>

#include "wildcard/wildcard.h"

/* Numbers count up: multiplied by an odd one they are spread, and never collide twice. */
static u32 home(const struct directory *directory, u64 number)
{
	return (number * 0x9e3779b97f4a7c15ULL >> 32) & (directory->size - 1);
}

struct place *find_place(const struct family *family, u64 number)
{
	const struct directory *directory = &family->directory;

	for (u32 at = home(directory, number);; at = (at + 1) & (directory->size - 1)) {
		/* First, since no rule has number 0, which is what is asked for then. */
		if (!directory->places[at].number)
			return NULL;
		if (directory->places[at].number == number)
			return &directory->places[at];
	}
}

/* Makes sure that a place can be added; half of them are always free. */
bool reserve_place(struct family *family)
{
	struct directory old = family->directory;
	u32 size = old.size ? 2 * old.size : 64;

	if (2 * (old.count + 1) <= old.size)
		return true;
	family->directory = (struct directory){ calloc(size, sizeof(struct place)), size, 0 };
	if (!family->directory.places) {
		family->directory = old;
		return false;
	}
	for (u32 at = 0; at < old.size; at++)
		if (old.places[at].number)
			*add_place(family, old.places[at].number) = old.places[at];
	free(old.places);
	return true;
}

/* A place for a number that has none; the caller fills it. */
struct place *add_place(struct family *family, u64 number)
{
	struct directory *directory = &family->directory;
	u32 at = home(directory, number);

	while (directory->places[at].number)
		at = (at + 1) & (directory->size - 1);
	directory->places[at].number = number;
	directory->count++;
	return &directory->places[at];
}

/* Those behind move up, so that no search for them ends in a gap. */
void remove_place(struct family *family, struct place *place)
{
	struct directory *directory = &family->directory;
	u32 mask = directory->size - 1, gap = place - directory->places;

	for (u32 at = (gap + 1) & mask; directory->places[at].number; at = (at + 1) & mask) {
		u32 from_home = (at - home(directory, directory->places[at].number)) & mask;

		if (from_home >= ((at - gap) & mask)) {
			directory->places[gap] = directory->places[at];
			gap = at;
		}
	}
	directory->places[gap] = (struct place){ 0 };
	directory->count--;
}
