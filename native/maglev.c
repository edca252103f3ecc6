/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills Maglev tables (Eisenbud et al., NSDI 2016, section 3.4), weighted.
 *
 * As in the paper, each backend has its own permutation of the slots, `offset`
 * and `skip` from a hash of its identity, and backends take turns. Two things
 * differ:
 *
 *  - A turn looks at one slot of the permutation and takes it if it is free. In
 *    the paper a turn goes on until a free slot is found, so what a backend gets
 *    depends on how far all others have come; looking at one slot makes it depend
 *    on those alone that want the same slot, and fewer slots move with a change.
 *  - How many slots a backend gets is settled before (Webster's method, at least
 *    one), and it takes no turns once it has them. Its turns come at times
 *    (k + 1/2) / weight, k = 0, 1, ...
 *
 * Backends that are away for a while have their slots filled in a second round: the
 * table is first filled as if all were there, and then those that are there take
 * turns, from the first on, for the slots of those that are not. What a backend has
 * from the first round it keeps, whoever comes and goes. In the second round it gets
 * what it lacks of its share of the whole table among those that are there. It never
 * has more than that share: among fewer, Webster's method gives nobody less.
 *
 * Where few share a table, what these turns come to is found without taking them: see
 * maglev_claim.c.
 *
 * Nothing depends on the order that the caller's backends are in, on floating
 * point, or on the machine's byte order.
 */
#include <stdint.h>
#include <stdlib.h>

#include "export.h"
#include "maglev.h"

/* Backends of one weight: their turns coincide. */
struct class {
	uint64_t time; /* of the next turn */
	uint32_t turn;
	uint32_t weight;
	uint32_t count;		/* members that still take turns */
	struct member *members; /* in order of identity */
};

/*
 * (2k + 1) / weight in units of 2^-40, rounded down. Times that differ do so by
 * at least 2^-32, weights having 16 bits, so rounding keeps their order; k has
 * 22 bits, so 64 bits hold it.
 */
static uint64_t turn_time(uint32_t k, uint32_t weight)
{
	return ((2 * (uint64_t)k + 1) << 40) / weight;
}

/* The k that turn_time() of is at most `time`, counted; at least 1. */
static uint32_t turns_until(uint64_t time, uint32_t weight)
{
	uint32_t turns = ((((time + 1) * weight - 1) >> 40) + 1) / 2;

	return turns ? turns : 1;
}

static uint64_t slots_until(uint64_t time, const struct class *classes, uint32_t count)
{
	uint64_t slots = 0;

	for (const struct class *c = classes; c < classes + count; c++)
		slots += (uint64_t)c->count * turns_until(time, c->weight);
	return slots;
}

/*
 * Webster's method: slots go to turns by time, until all are given. Classes are
 * in order of falling weight. Of turns at the very last time, the first in order
 * have it.
 */
static void share_slots(struct class *classes, uint32_t count, uint32_t size)
{
	uint64_t low = 0, high = turn_time(size, classes[0].weight);
	uint64_t surplus;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (slots_until(middle, classes, count) < size)
			low = middle + 1;
		else
			high = middle;
	}
	surplus = slots_until(low, classes, count) - size;
	for (struct class *c = classes + count; c-- > classes;) {
		uint32_t slots = turns_until(low, c->weight);
		int is_last = slots > 1 && turn_time(slots - 1, c->weight) == low;

		for (uint32_t i = c->count; i-- > 0;) {
			c->members[i].slots = slots;
			if (is_last && surplus) {
				c->members[i].slots--;
				surplus--;
			}
		}
	}
}

static void end_turn(struct class *c, uint32_t kept)
{
	c->count = kept;
	c->turn++;
	c->time = turn_time(c->turn, c->weight);
}

/*
 * One turn of every member, in order; those that have their slots leave. Returns how many slots
 * were taken.
 */
static uint32_t take_turns(struct class *c, uint32_t *table, uint32_t size)
{
	uint32_t kept = 0, taken = 0;

	for (uint32_t i = 0; i < c->count; i++) {
		struct member m = c->members[i];
		uint32_t *slot = &table[m.next], is_free = *slot == FREE;

		/* Without branches: whether a slot is free can't be foretold. */
		*slot = is_free ? m.label : *slot;
		taken += is_free;
		m.slots -= is_free;
		m.next += m.skip;
		m.next -= m.next >= size ? size : 0;
		c->members[kept] = m;
		kept += m.slots != 0;
	}
	end_turn(c, kept);
	return taken;
}

/* Slots that are free, a bit each: while few are, looks at taken ones find nothing else there. */
#define BITS 64
/* From then on: of so many slots one is free. */
#define LATE 8

static uint64_t *note_free(const uint32_t *table, uint32_t size)
{
	uint64_t *found = calloc(size / BITS + 1, sizeof(*found));

	for (uint32_t slot = 0; found && slot < size; slot++)
		found[slot / BITS] |= (uint64_t)(table[slot] == FREE) << slot % BITS;
	return found;
}

/* Those that lack nothing leave. */
static void keep_lacking(struct class *c)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < c->count; i++)
		if (c->members[i].slots)
			c->members[kept++] = c->members[i];
	c->count = kept;
}

/* The same as take_turns(), once nearly all slots are taken. */
static void take_late_turns(struct class *c, uint32_t *table, uint64_t *spare, uint32_t size)
{
	uint32_t left = 0;

	for (struct member *m = c->members; m < c->members + c->count; m++) {
		uint32_t slot = m->next, next = slot + m->skip;

		m->next = next >= size ? next - size : next;
		if (__builtin_expect(spare[slot / BITS] >> slot % BITS & 1, 0)) {
			spare[slot / BITS] &= ~(1ULL << slot % BITS);
			table[slot] = m->label;
			left += !--m->slots;
		}
	}
	if (left)
		keep_lacking(c);
	end_turn(c, c->count);
}

static int is_before(const struct class *a, const struct class *b)
{
	return a->time < b->time || (a->time == b->time && a->weight > b->weight);
}

/* Restores the heap after classes[at] has become later. */
static void sift_down(struct class *heap, uint32_t count, uint32_t at)
{
	struct class moved = heap[at];

	for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
		if (child + 1 < count && is_before(&heap[child + 1], &heap[child]))
			child++;
		if (is_before(&moved, &heap[child]))
			break;
		heap[at] = heap[child];
	}
	heap[at] = moved;
}

/* 32 bits to [0, n). */
static uint32_t scale(uint64_t hash, uint32_t n)
{
	return (hash >> 32) * n >> 32;
}

/* As in bpf/net/hash.h: xor, multiply by an odd constant, fold the high half down. */
static uint64_t hash_step(uint64_t state, uint64_t word)
{
	state = (state ^ word) * 0x9fb21c651e98df25ULL;
	return state ^ state >> 32;
}

/* Of the length, then of little-endian words, the last filled up with zeros. */
static uint64_t hash_identity(const uint8_t *bytes, uint32_t length)
{
	uint64_t state = hash_step(0, length), word = 0;

	for (uint32_t i = 0; i < length; i++) {
		word |= (uint64_t)bytes[i] << 8 * (i % 8);
		if (i % 8 == 7 || i == length - 1) {
			state = hash_step(state, word);
			word = 0;
		}
	}
	return state;
}

static void permute(struct member *m, const uint8_t *identity, uint32_t length, uint32_t size)
{
	uint64_t hash = hash_identity(identity, length);

	m->next = scale(hash_step(hash, 1), size);
	m->skip = 1 + scale(hash_step(hash, 2), size - 1);
}

static uint32_t make_classes(struct class *classes, struct member *members, const uint32_t *weights,
			     uint32_t count)
{
	uint32_t made = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (!i || weights[i] != weights[i - 1])
			classes[made++] = (struct class){
				.time = turn_time(0, weights[i]),
				.weight = weights[i],
				.members = &members[i],
			};
		classes[made - 1].count++;
	}
	return made;
}

/* The backends as the caller has them: see towpath_maglev(). */
struct backends {
	const uint8_t *identities;
	const uint32_t *ends;
	const uint32_t *weights;
	const uint8_t *away; /* NULL: nobody */
	uint32_t count;
};

struct scratch {
	struct member *members;
	struct class *classes;
	uint32_t *weights; /* of the members */
	uint32_t *owned;   /* slots by place in order */
};

/* Makes members of the backends, without those away if so asked. Returns their number. */
static uint32_t make_members(const struct scratch *scratch, const struct backends *all,
			     int present_only, uint32_t size)
{
	uint32_t made = 0;

	for (uint32_t i = 0, start = 0; i < all->count; start = all->ends[i++]) {
		if (present_only && all->away[i])
			continue;
		scratch->members[made].label = i;
		permute(&scratch->members[made], all->identities + start, all->ends[i] - start,
			size);
		scratch->weights[made++] = all->weights[i];
	}
	return made;
}

/* Slots that members still have to take. */
static uint32_t slots_lacking(const struct class *classes, uint32_t count)
{
	uint32_t lacking = 0;

	for (const struct class *c = classes; c < classes + count; c++)
		for (uint32_t i = 0; i < c->count; i++)
			lacking += c->members[i].slots;
	return lacking;
}

/* Takes turns until nobody lacks a slot. */
static void fill(struct class *heap, uint32_t left, uint32_t *table, uint32_t size)
{
	uint32_t lacking = slots_lacking(heap, left);
	uint64_t *spare = NULL;

	/* Falling weight is rising time: the array is a heap already. */
	while (left) {
		if (!spare && lacking <= size / LATE)
			spare = note_free(table, size);
		if (heap[0].count) {
			if (spare)
				take_late_turns(&heap[0], table, spare, size);
			else
				lacking -= take_turns(&heap[0], table, size);
		}
		if (!heap[0].count)
			heap[0] = heap[--left];
		sift_down(heap, left, 0);
	}
	free(spare);
}

/* Frees the slots of those away and counts what the others have. */
static void vacate(const struct scratch *scratch, const struct backends *all, uint32_t *table,
		   uint32_t size)
{
	for (uint32_t i = 0; i < all->count; i++)
		scratch->owned[i] = 0;
	for (uint32_t slot = 0; slot < size; slot++) {
		if (all->away[table[slot]])
			table[slot] = FREE;
		else
			scratch->owned[table[slot]]++;
	}
}

/* Has the others take the slots of those away. -1: there is no memory. */
static int fill_in(const struct scratch *scratch, const struct backends *all, uint32_t *table,
		   uint32_t size)
{
	uint32_t count, classes;
	int done;

	vacate(scratch, all, table, size);
	count = make_members(scratch, all, 1, size);
	classes = make_classes(scratch->classes, scratch->members, scratch->weights, count);
	share_slots(scratch->classes, classes, size);
	/* What a member has is a part of its share. */
	for (uint32_t i = 0; i < count; i++)
		scratch->members[i].slots -= scratch->owned[scratch->members[i].label];
	done = maglev_claim(scratch->members, scratch->weights, count, NULL, table, size, 0);
	if (done)
		return done < 0 ? -1 : 0;
	for (uint32_t i = 0; i < classes; i++)
		keep_lacking(&scratch->classes[i]);
	fill(scratch->classes, classes, table, size);
	return 0;
}

/* Has all backends take the slots. 1: they have what is written into them. -1: no memory. */
static int fill_all(const struct scratch *scratch, const struct backends *all,
		    const uint32_t *labels, uint32_t *table, uint32_t size)
{
	uint32_t classes;
	int done;

	make_members(scratch, all, 0, size);
	classes = make_classes(scratch->classes, scratch->members, all->weights, all->count);
	share_slots(scratch->classes, classes, size);
	done = maglev_claim(scratch->members, all->weights, all->count, labels, table, size, 1);
	if (done)
		return done < 0 ? -1 : labels != NULL;
	for (uint32_t slot = 0; slot < size; slot++)
		table[slot] = FREE;
	fill(scratch->classes, classes, table, size);
	return 0;
}

static int alloc_scratch(struct scratch *scratch, uint32_t count)
{
	*scratch = (struct scratch){
		.members = malloc(count * sizeof(*scratch->members)),
		.classes = malloc(count * sizeof(*scratch->classes)),
		.weights = malloc(count * sizeof(*scratch->weights)),
		.owned = malloc(count * sizeof(*scratch->owned)),
	};
	return scratch->members && scratch->classes && scratch->weights && scratch->owned ? 0 : -1;
}

static void free_scratch(struct scratch *scratch)
{
	free(scratch->members);
	free(scratch->classes);
	free(scratch->weights);
	free(scratch->owned);
}

/*
 * Fills table[0 .. size-1] with labels. size is a prime below 2^22. Backends,
 * 1 <= count <= size, come by falling weight (1 .. 65535), equal weights by
 * identity; identity i is the bytes from ends[i - 1] (0 for the first) to ends[i].
 * Those whose byte in `away` isn't 0, never all of them, have their slots filled by
 * the others; NULL: nobody is away. Returns 0, or -1 when there is no memory.
 */
PUBLIC int towpath_maglev(uint32_t *table, uint32_t size, uint32_t count, const uint8_t *identities,
			  const uint32_t *ends, const uint32_t *weights, const uint32_t *labels,
			  const uint8_t *away)
{
	struct backends all = { identities, ends, weights, away, count };
	struct scratch scratch;
	int done = -1;

	if (!alloc_scratch(&scratch, count)) {
		done = fill_all(&scratch, &all, away ? NULL : labels, table, size);
		if (!done && away)
			done = fill_in(&scratch, &all, table, size);
		for (uint32_t slot = 0; !done && slot < size; slot++)
			table[slot] = labels[table[slot]];
	}
	free_scratch(&scratch);
	return done < 0 ? -1 : 0;
}
