/* SPDX-License-Identifier: Apache-2.0 */
/* What is common to the two ways of filling Maglev tables: turn by turn, and slot by slot. */
#ifndef TOWPATH_NATIVE_MAGLEV_H
#define TOWPATH_NATIVE_MAGLEV_H

#include <stdint.h>

/* In a slot that nobody has. */
#define FREE UINT32_MAX

struct member {
	uint32_t label; /* what is written into its slots: its place in order */
	uint32_t slots; /* still to take */
	uint32_t next;	/* slot to look at in the next turn */
	uint32_t skip;
};

/*
 * Fills the free slots of a table as turns would, if that can be told without taking them. The
 * members, in order, have as many `slots` to take as are free; `weights` are theirs. `labels`: what
 * is written instead of a member's own label, by that; NULL: its own. `is_empty`: all slots are
 * free, whatever is in them. Returns 1 if it has, 0 if turns have to be taken, -1 when there is no
 * memory.
 */
int maglev_claim(const struct member *members, const uint32_t *weights, uint32_t count,
		 const uint32_t *labels, uint32_t *table, uint32_t size, int is_empty);

#endif
