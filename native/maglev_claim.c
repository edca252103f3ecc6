/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills Maglev tables slot by slot, with what turns would give: see maglev.c.
 *
 * A member comes to slot s in its turn k = (s - offset) / skip, modulo the size of the table, at
 * time (2k + 1) / weight. So who comes first is known without a walk through the permutations, and
 * from slot to slot k grows by 1 / skip: for all slots of a table it is a few instructions on
 * several slots at once. The slot is that member's, unless it has all its slots by then.
 *
 * A key has all that the order depends on: times in units of which each member's are an odd
 * multiple, its pace, and below that its place in order. Nobody has all slots before most of them
 * are given, so those that are claimed early need nothing else. The others are gone through in the
 * order of their keys; where the one who comes first lacks none any more, the slot waits for who
 * comes next.
 */
#include <stdlib.h>
#include <string.h>

#include "maglev.h"

/* Keys of so many slots at once, and twice that in a step. */
#define LANES 8
#define STEP  (2 * LANES)
/* Slots that all members are asked for before the next: 4 KiB of keys. */
#define BLOCK 1024
/* More members than that would be asked about each slot for longer than turns take. */
#define MOST_MEMBERS 72

typedef uint32_t vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct claimant {
	uint32_t offset;  /* the slot of its first turn */
	uint32_t inverse; /* of its skip, modulo the size */
	uint32_t pace;
	uint32_t left; /* slots that it still has to take */
};

struct claim {
	uint32_t key;
	uint32_t slot;
	uint32_t next; /* in its bucket, which is in order; NONE is the last */
};

#define NONE UINT32_MAX

struct contest {
	uint32_t size;
	uint32_t count;
	uint32_t bits;	     /* of a place in order */
	uint64_t reciprocal; /* 2^64 / size */
	struct claimant *all;
	uint32_t *labels;
	uint32_t *lacking; /* places of those that have slots to take */
	uint32_t lackings;
	uint32_t *table;
	/* Claims that are still to be decided, by their keys. */
	struct claim *claims;
	uint32_t waiting;
	uint32_t *heads;
	uint32_t buckets;
	uint32_t lowest;
	uint32_t shift;
};

/* ---- Who comes to a slot, and when ------------------------------------------------------------ */

static uint32_t gcd(uint32_t a, uint32_t b)
{
	while (b) {
		uint32_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* 1 / n modulo a prime. */
static uint32_t invert(uint32_t n, uint32_t prime)
{
	int64_t before = 0, now = 1;
	uint32_t a = prime, b = n;

	while (b > 1) {
		uint32_t quotient = a / b, rest = a % b;
		int64_t next = before - quotient * now;

		a = b;
		b = rest;
		before = now;
		now = next;
	}
	return now < 0 ? now + prime : now;
}

/* x modulo the size, of a product of two numbers below it. */
static uint32_t reduce(const struct contest *c, uint64_t x)
{
	uint64_t quotient = (unsigned __int128)x * c->reciprocal >> 64;
	uint32_t rest = x - quotient * c->size;

	return rest >= c->size ? rest + c->size : rest;
}

static uint32_t key_of(const struct contest *c, uint32_t place, uint32_t slot)
{
	const struct claimant *m = &c->all[place];
	uint32_t distance = slot < m->offset ? slot + c->size - m->offset : slot - m->offset;
	uint32_t turn = reduce(c, (uint64_t)distance * m->inverse);

	return ((2 * turn + 1) * m->pace) << c->bits | place;
}

static uint32_t first_key(const struct contest *c, uint32_t slot)
{
	uint32_t first = UINT32_MAX;

	for (uint32_t i = 0; i < c->lackings; i++) {
		uint32_t key = key_of(c, c->lacking[i], slot);

		first = key < first ? key : first;
	}
	return first;
}

static uint32_t place_of(const struct contest *c, uint32_t key)
{
	return key & ((1U << c->bits) - 1);
}

/* Above every key. */
static uint64_t end_of_keys(const struct contest *c)
{
	uint32_t slowest = 1;

	for (uint32_t i = 0; i < c->count; i++)
		slowest = c->all[i].pace > slowest ? c->all[i].pace : slowest;
	return 2 * (uint64_t)c->size * slowest << c->bits;
}

/* ---- All slots at once ------------------------------------------------------------------------ */

/* A member's keys of as many slots as a step has, and what they grow by. */
struct pace {
	vector keys[2];
	uint32_t step;
	uint32_t wrap;
};

#define LESSER(a, b) (((a) & (vector)((a) < (b))) | ((b) & ~(vector)((a) < (b))))

static inline __attribute__((always_inline)) void sweep(uint32_t *first, uint32_t size,
							struct pace *paces, uint32_t count)
{
	for (uint32_t start = 0; start < size; start += BLOCK) {
		for (struct pace *p = paces; p < paces + count; p++) {
			vector a = p->keys[0], b = p->keys[1], next;

			for (uint32_t at = start; at < start + BLOCK; at += STEP) {
				vector *slots = (vector *)(first + at);

				slots[0] = LESSER(slots[0], a);
				slots[1] = LESSER(slots[1], b);
				/* Modulo the wrap: below zero is above everything. */
				a += p->step;
				next = a - p->wrap;
				a = LESSER(a, next);
				b += p->step;
				next = b - p->wrap;
				b = LESSER(b, next);
			}
			p->keys[0] = a;
			p->keys[1] = b;
		}
	}
}

static void sweep_anywhere(uint32_t *first, uint32_t size, struct pace *paces, uint32_t count)
{
	sweep(first, size, paces, count);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void sweep_avx2(uint32_t *first, uint32_t size,
						       struct pace *paces, uint32_t count)
{
	sweep(first, size, paces, count);
}
#endif

static void set_pace(const struct contest *c, uint32_t place, struct pace *p)
{
	const struct claimant *m = &c->all[place];
	uint32_t turns = 0;

	for (uint32_t slot = 0; slot < STEP; slot++) {
		p->keys[slot / LANES][slot % LANES] = key_of(c, place, slot % c->size);
		turns = (turns + (uint64_t)m->inverse) % c->size;
	}
	p->step = (2 * turns * m->pace) << c->bits;
	p->wrap = (2 * c->size * m->pace) << c->bits;
}

/* The key of who comes first, for every slot. `first` has room for whole blocks. */
static void find_first(const struct contest *c, uint32_t *first, struct pace *paces)
{
	for (uint32_t i = 0; i < c->count; i++)
		set_pace(c, i, &paces[i]);
	memset(first, 0xff, (c->size + BLOCK) * sizeof(*first));
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2")) {
		sweep_avx2(first, c->size, paces, c->count);
		return;
	}
#endif
	sweep_anywhere(first, c->size, paces, c->count);
}

/*
 * A key below which all slots but about so many of 256 are claimed. Whatever it is, the table is
 * the same: that no member has more slots below it than it is to have is looked at.
 */
static uint32_t key_before(const uint32_t *first, uint32_t size, uint32_t left_over)
{
	uint32_t counts[256] = { 0 }, most = 0, shift = 0, stride = size > 4096 ? 8 : 1;
	uint32_t wanted = (uint64_t)(size / stride) * (256 - left_over) / 256;

	for (uint32_t slot = 0; slot < size; slot += stride)
		most = first[slot] > most ? first[slot] : most;
	while (most >> shift > 255)
		shift++;
	for (uint32_t slot = 0; slot < size; slot += stride)
		counts[first[slot] >> shift]++;
	for (uint32_t at = 0, sum = 0; at < 256; at++) {
		sum += counts[at];
		if (sum > wanted)
			return at << shift;
	}
	return most;
}

/* Of 256 slots those that are too late to be given without a look at what each member lacks. */
static uint32_t share_left_over(const struct contest *c)
{
	uint32_t least = UINT32_MAX, root = 1;

	for (uint32_t i = 0; i < c->count; i++)
		least = c->all[i].left < least ? c->all[i].left : least;
	/* How many slots a member has by then varies by about the root of their number. */
	while (root * root < least)
		root++;
	return 4 * 256 / root + 2;
}

/* Gives the slots that are claimed before `key`. Whether that left nobody with too many. */
static int give_early(struct contest *c, const uint32_t *first, uint32_t key, uint32_t *counts)
{
	uint32_t waiting = 0;

	memset(counts, 0, c->count * sizeof(*counts));
	for (uint32_t slot = 0; slot < c->size; slot++) {
		uint32_t place = place_of(c, first[slot]), is_early = first[slot] < key;

		counts[place] += is_early;
		c->table[slot] = c->labels[place];
		c->claims[waiting] = (struct claim){ .key = first[slot], .slot = slot };
		waiting += !is_early;
	}
	for (uint32_t i = 0; i < c->count; i++)
		if (counts[i] > c->all[i].left)
			return 0;
	c->waiting = waiting;
	c->lowest = key;
	return 1;
}

static int claim_early(struct contest *c)
{
	uint32_t *first = malloc((c->size + BLOCK) * sizeof(*first));
	uint32_t *counts = malloc(c->count * sizeof(*counts));
	struct pace *paces = malloc(c->count * sizeof(*paces));
	int failed = !first || !counts || !paces;

	if (!failed) {
		uint32_t left_over = share_left_over(c);

		find_first(c, first, paces);
		while (!give_early(c, first,
				   left_over < 256 ? key_before(first, c->size, left_over) : 0,
				   counts))
			left_over *= 2;
		for (uint32_t i = 0; i < c->count; i++)
			c->all[i].left -= counts[i];
	}
	free(first);
	free(counts);
	free(paces);
	return failed ? -1 : 0;
}

/* ---- One after the other ---------------------------------------------------------------------- */

static void wait_for_turn(struct contest *c, uint32_t which)
{
	struct claim *claim = &c->claims[which];
	uint32_t *at = &c->heads[(claim->key - c->lowest) >> c->shift];

	while (*at != NONE && c->claims[*at].key < claim->key)
		at = &c->claims[*at].next;
	claim->next = *at;
	*at = which;
}

static void lack_no_more(struct contest *c, uint32_t place)
{
	for (uint32_t i = 0; i < c->lackings; i++)
		if (c->lacking[i] == place) {
			c->lacking[i] = c->lacking[--c->lackings];
			return;
		}
}

static void decide(struct contest *c, uint32_t which)
{
	struct claim *claim = &c->claims[which];
	uint32_t place = place_of(c, claim->key);

	if (!c->all[place].left) {
		if (!c->lackings)
			return;
		claim->key = first_key(c, claim->slot);
		wait_for_turn(c, which);
		return;
	}
	c->table[claim->slot] = c->labels[place];
	if (!--c->all[place].left)
		lack_no_more(c, place);
}

static int claim_in_order(struct contest *c)
{
	uint64_t range = end_of_keys(c) - c->lowest;

	while (c->buckets < c->waiting)
		c->buckets *= 2;
	while (range >> c->shift >= c->buckets)
		c->shift++;
	c->heads = malloc(c->buckets * sizeof(*c->heads));
	if (!c->heads)
		return -1;
	memset(c->heads, 0xff, c->buckets * sizeof(*c->heads));
	for (uint32_t i = 0; i < c->count; i++)
		if (c->all[i].left)
			c->lacking[c->lackings++] = i;
	for (uint32_t i = 0; i < c->waiting; i++)
		wait_for_turn(c, i);
	for (uint32_t at = 0; at < c->buckets; at++)
		while (c->heads[at] != NONE) {
			uint32_t which = c->heads[at];

			c->heads[at] = c->claims[which].next;
			decide(c, which);
		}
	free(c->heads);
	return 0;
}

/* ---- A table ---------------------------------------------------------------------------------- */

/* Sets paces to what times are multiples of. Whether keys of all turns have 32 bits. */
static int set_paces(struct contest *c, const uint32_t *weights)
{
	uint64_t common = 1;

	for (uint32_t i = 0; i < c->count; i++) {
		common = common / gcd(common, weights[i]) * weights[i];
		if (common > UINT32_MAX)
			return 0;
	}
	while (1U << c->bits < c->count)
		c->bits++;
	for (uint32_t i = 0; i < c->count; i++)
		c->all[i].pace = common / weights[i];
	/* And twice that, before it is taken modulo what is once round. */
	return end_of_keys(c) << 1 <= 1ULL << 32;
}

static void enter(struct contest *c, const struct member *members, const uint32_t *labels)
{
	for (uint32_t i = 0; i < c->count; i++) {
		c->all[i].offset = members[i].next;
		c->all[i].inverse = invert(members[i].skip, c->size);
		c->all[i].left = members[i].slots;
		c->labels[i] = labels ? labels[members[i].label] : members[i].label;
	}
}

/* Has all free slots claimed, by those that lack some. */
static void claim_free(struct contest *c)
{
	for (uint32_t i = 0; i < c->count; i++)
		if (c->all[i].left)
			c->lacking[c->lackings++] = i;
	for (uint32_t slot = 0; slot < c->size; slot++)
		if (c->table[slot] == FREE)
			c->claims[c->waiting++] = (struct claim){
				.key = first_key(c, slot),
				.slot = slot,
			};
	c->lackings = 0;
}

int maglev_claim(const struct member *members, const uint32_t *weights, uint32_t count,
		 const uint32_t *labels, uint32_t *table, uint32_t size, int is_empty)
{
	struct contest c = {
		.size = size,
		.count = count,
		.reciprocal = UINT64_MAX / size + 1,
		.table = table,
		.buckets = 1,
	};
	int done = -1;

	if (!count || count > MOST_MEMBERS)
		return 0;
	c.all = malloc(count * sizeof(*c.all));
	c.labels = malloc(count * sizeof(*c.labels));
	c.lacking = malloc(count * sizeof(*c.lacking));
	c.claims = malloc((size + 1) * sizeof(*c.claims));
	if (c.all && c.labels && c.lacking && c.claims) {
		done = set_paces(&c, weights);
		if (done) {
			enter(&c, members, labels);
			if (!is_empty)
				claim_free(&c);
			else
				done = claim_early(&c) ? -1 : 1;
			if (done > 0 && claim_in_order(&c))
				done = -1;
		}
	}
	free(c.all);
	free(c.labels);
	free(c.lacking);
	free(c.claims);
	return done;
}
