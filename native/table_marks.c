/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether services' tables are as they were left: sums of what is in them, and marks.
 *
 * A mark is of a table's slots and of the records of all backends that the service had when a
 * change of it was through. Whoever finds both as the mark has them finds the work of a process
 * that went on to the end, and need not make the table again to know that it is right. It is
 * against what is left half done and what others have written, not against who would forge it:
 * they could as well write the tables.
 */
#include <stdint.h>
#include <string.h>

#include "export.h"

/* Sums of so many words go side by side: each waits for the one before it. */
#define LANES	   8
#define LANE_SLOTS 2

/* Another number: marks of tables that are made in another way. */
static const uint64_t VERSION = 1;

/* As in bpf/net/hash.h: xor, multiply by an odd constant, fold the high half down. */
static uint64_t hash_step(uint64_t state, uint64_t word)
{
	state = (state ^ word) * 0x9fb21c651e98df25ULL;
	return state ^ state >> 32;
}

static void add_line(uint64_t *lanes, const uint32_t *slots)
{
	uint64_t words[LANES];

	memcpy(words, slots, sizeof(words));
	for (uint32_t i = 0; i < LANES; i++)
		lanes[i] = hash_step(lanes[i], words[i]);
}

static uint64_t sum_slots(const uint32_t *slots, uint32_t count)
{
	uint64_t lanes[LANES] = { 0 }, sum = hash_step(0, count);
	uint32_t rest[LANES * LANE_SLOTS] = { 0 }, at = 0;

	for (; at + LANES * LANE_SLOTS <= count; at += LANES * LANE_SLOTS)
		add_line(lanes, slots + at);
	if (at < count) {
		memcpy(rest, slots + at, (count - at) * sizeof(*slots));
		add_line(lanes, rest);
	}
	for (uint32_t i = 0; i < LANES; i++)
		sum = hash_step(sum, lanes[i]);
	return sum;
}

/* The sum of each of so many tables: `counts[i]` slots from `slots[firsts[i]]` on. */
PUBLIC void towpath_slot_sums(const uint32_t *slots, const uint64_t *firsts, const uint32_t *counts,
			      uint32_t tables, uint64_t *sums)
{
	for (uint32_t i = 0; i < tables; i++)
		sums[i] = sum_slots(slots + firsts[i], counts[i]);
}

/*
 * The mark of each of so many services, never 0. Backends of service i are those from ends[i - 1]
 * (0 for the first) to ends[i], in any order; each has 16 bytes of `addresses` and one of `words`:
 * all else of it that the table has to do with.
 */
PUBLIC void towpath_table_marks(const uint8_t *addresses, const uint64_t *words,
				const uint32_t *ends, const uint64_t *sums, uint32_t services,
				uint64_t *marks)
{
	for (uint32_t i = 0, at = 0; i < services; i++) {
		uint64_t all = ends[i] - at, mark;

		for (; at < ends[i]; at++) {
			uint64_t address[2];

			memcpy(address, addresses + 16 * (size_t)at, sizeof(address));
			all += hash_step(hash_step(hash_step(VERSION, address[0]), address[1]),
					 words[at]);
		}
		mark = hash_step(hash_step(VERSION, all), sums[i]);
		marks[i] = mark ? mark : 1;
	}
}
