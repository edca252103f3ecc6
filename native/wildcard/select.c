/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tuple a rule goes into.
 *
 * As in TupleMerge (Daly et al., IEEE/ACM Transactions on Networking, 2019) a tuple
 * takes rules whose masks are narrower than its own, so that few tuples do for many
 * masks, as long as not too many rules share a slot. Differently from there a tuple
 * is never split: a rule whose slots are crowded in all tuples gets a new tuple, and
 * those that are there stay where they are. So nothing has to move.
 */
#include <string.h>

#include "wildcard/wildcard.h"

enum {
	FEW_TUPLES = 24,  /* up to here a run is crowded that is SHORT_RUN long */
	MANY_TUPLES = 40, /* up to here one that is LONG_RUN long, then only a full one */
	SHORT_RUN = 8,
	LONG_RUN = 12,
};

static u32 tuples_used(const struct family *family)
{
	u32 used = 0;

	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++)
		used += family->tuples[bit].live && family->tuples[bit].rules;
	return used;
}

/* From how many rules on a run is worth another tuple. */
static u32 crowded_from(u32 used)
{
	return used < FEW_TUPLES ? SHORT_RUN : used < MANY_TUPLES ? LONG_RUN : WILDCARD_RUN;
}

static u32 bits_in(const struct family *family, const u64 *mask)
{
	u32 bits = 0;

	for (u32 i = 0; i < family->words; i++)
		bits += __builtin_popcountll(mask[i]);
	return bits;
}

/* The tuples that would take a rule: the narrowest, and that with the shortest run. */
struct choice {
	int narrowest; /* of those that aren't crowded; -1 = none */
	int shortest;  /* of those that aren't full; -1 = none */
};

static struct choice look_around(const struct family *family, const struct wildcard_rule *rule,
				 u32 crowded)
{
	struct choice choice = { -1, -1 };
	u32 max_bits = 0, least = WILDCARD_RUN;

	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		const u64 *mask = tuple_at(family, bit)->mask;
		u32 count;

		if (!family->tuples[bit].live || !is_within(family, mask_of(family, rule), mask))
			continue;
		count = count_in_run(family, bit, hash_in(family, bit, bits_of(rule)));
		if (count < crowded && bits_in(family, mask) >= max_bits) {
			max_bits = bits_in(family, mask);
			choice.narrowest = bit;
		}
		if (count < least) {
			least = count;
			choice.shortest = bit;
		}
	}
	return choice;
}

/* ---- new tuples ---- */

static u64 prefix(u32 length)
{
	return length ? ~0ULL << (64 - length) : 0;
}

static void set_prefix(u64 *high, u64 *low, u32 length)
{
	*high = prefix(length < 64 ? length : 64);
	*low = prefix(length < 64 ? 0 : length - 64);
}

/* Prefix lengths of source and destination. */
static void read_lengths(const struct family *family, const u64 *mask, u32 *source,
			 u32 *destination)
{
	if (family->words == WILDCARD_WORDS_V4) {
		*source = __builtin_popcountll(mask[0] >> 32);
		*destination = __builtin_popcountll(mask[0] & 0xffffffff);
	} else {
		*source = __builtin_popcountll(mask[0]) + __builtin_popcountll(mask[1]);
		*destination = __builtin_popcountll(mask[2]) + __builtin_popcountll(mask[3]);
	}
}

static void write_lengths(const struct family *family, u64 *mask, u32 source, u32 destination)
{
	if (family->words == WILDCARD_WORDS_V4) {
		mask[0] = prefix(source) | prefix(destination) >> 32;
	} else {
		set_prefix(&mask[0], &mask[1], source);
		set_prefix(&mask[2], &mask[3], destination);
	}
}

/* Ranges that aren't single ports are left to the rules; so is the port of an `other` side. */
static u64 relaxed_ports(u64 rest, bool no_source, bool no_destination)
{
	u64 sport = 0xffffULL << WILDCARD_SPORT, dport = 0xffffULL << WILDCARD_DPORT;

	if (no_source || (rest & sport) != sport)
		rest &= ~sport;
	if (no_destination || (rest & dport) != dport)
		rest &= ~dport;
	return rest;
}

/* A prefix length, down to a multiple of some unit; that of a host always shorter. */
static u32 rounded(u32 length, u32 width, u32 unit)
{
	return (length == width ? length - 1 : length) / unit * unit;
}

/*
 * A mask that takes more rules than just those like this one: without ranges of
 * ports, and with shorter addresses. If `one_sided`, also without the address that
 * is much the shorter of the two, and that side's port.
 */
static void relax(const struct family *family, const u64 *mask, u32 unit, bool one_sided,
		  u64 *relaxed)
{
	u32 width = family->words == WILDCARD_WORDS_V4 ? 32 : 128;
	u32 source, destination, last = family->words - 1;
	bool no_source, no_destination;

	read_lengths(family, mask, &source, &destination);
	no_source = one_sided && destination > source + width / 8;
	no_destination = one_sided && source > destination + width / 8;
	write_lengths(family, relaxed, no_source ? 0 : rounded(source, width, unit),
		      no_destination ? 0 : rounded(destination, width, unit));
	relaxed[last] = relaxed_ports(mask[last], no_source, no_destination);
}

static bool is_there(const struct family *family, const u64 *mask)
{
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++)
		if (family->tuples[bit].live &&
		    !memcmp(tuple_at(family, bit)->mask, mask, family->words * sizeof(*mask)))
			return true;
	return false;
}

/*
 * The widest mask for a rule that isn't there yet: the first of ever finer ones,
 * which begin the coarser the fewer tuples are left. If all are there, the rule's
 * own, which may be there twice.
 */
static void widest(const struct family *family, const u64 *mask, u32 used, u64 *wider)
{
	u32 width = family->words == WILDCARD_WORDS_V4 ? 32 : 128, last = family->words - 1;
	u32 unit = width / (used < FEW_TUPLES ? 8 : used < MANY_TUPLES ? 4 : 2);

	for (; unit >= width / 16; unit /= 2) {
		relax(family, mask, unit, true, wider);
		if (!is_there(family, wider))
			return;
		relax(family, mask, unit, false, wider);
		if (!is_there(family, wider))
			return;
	}
	memcpy(wider, mask, family->words * sizeof(*mask));
	wider[last] = relaxed_ports(mask[last], false, false);
	if (is_there(family, wider))
		wider[last] = mask[last];
}

/*
 * A new tuple for a rule, or a status. The last tuple is for rules that no other
 * takes, unless there is one that takes all.
 */
static int make_tuple_for(struct family *family, const struct wildcard_rule *rule, u32 used)
{
	u64 mask[MAX_WORDS] = { 0 };

	if (used < WILDCARD_TUPLES - 1 || is_there(family, mask))
		widest(family, mask_of(family, rule), used, mask);
	return make_tuple(family, mask);
}

/* The bit of the tuple that a rule goes into, or a status. */
int choose_tuple(struct family *family, const struct wildcard_rule *rule)
{
	u32 used = tuples_used(family);
	struct choice choice = look_around(family, rule, crowded_from(used));
	bool worth_it = used < MANY_TUPLES && !is_there(family, mask_of(family, rule));
	int made;

	if (choice.narrowest >= 0)
		return choice.narrowest;
	if (choice.shortest >= 0 && !worth_it)
		return choice.shortest;
	made = make_tuple_for(family, rule, used);
	return made < 0 && choice.shortest >= 0 ? choice.shortest : made;
}
