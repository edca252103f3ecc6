/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which part of the addresses the columns look at.
 *
 * A column has 13 bits of an address to go by. The best are those in which rules
 * differ: where all addresses begin with the same 48 bits, the first 13 tell
 * nothing.
 */
#include <stdlib.h>

#include "wildcard/wildcard.h"

enum {
	SAMPLE = 1024, /* rules looked at */
	WINDOW_BITS = 13,
	LAST_LEAF = WILDCARD_WINDOW_LEAVES - 1,
};

/* Rules to be sampled: each `stride`th, `count` of them. */
struct sample {
	const u64 *rules;
	u32 words;
	u32 rule_words;
	u32 stride;
	u32 count;
};

/* At each leaf: how many packets and rules begin there, less those that have ended. */
struct change {
	double packets;
	double rules;
};

static void note(const struct sample *sample, u32 word, u32 shift, struct change *changes)
{
	for (u32 i = 0; i < sample->count; i++) {
		const u64 *rule = sample->rules + (size_t)i * sample->stride * sample->rule_words;
		const u64 *bits = bits_of((const struct wildcard_rule *)rule);
		u32 fixed = bits[sample->words + word] >> shift & LAST_LEAF;
		u32 first = bits[word] >> shift & fixed;
		u32 end = first + (~fixed & LAST_LEAF) + 1;

		changes[first].packets += 1.0 / (end - first);
		changes[end].packets -= 1.0 / (end - first);
		changes[first].rules++;
		changes[end].rules--;
	}
}

/*
 * Packets that are spread as the rules are: how many rules does one find at its leaf?
 * Clears the changes again.
 */
static double crowd(const struct sample *sample, u32 word, u32 shift, struct change *changes)
{
	struct change here = { 0 };
	double met = 0;

	note(sample, word, shift, changes);
	for (u32 leaf = 0; leaf <= LAST_LEAF + 1; leaf++) {
		here.packets += changes[leaf].packets;
		here.rules += changes[leaf].rules;
		met += here.packets * here.rules;
		changes[leaf] = (struct change){ 0 };
	}
	return met;
}

struct best {
	struct wildcard_window window;
	double met;
};

/* Tries all windows of one word that lie between two bits. */
static void try_windows(const struct sample *sample, u32 first_word, u32 word, u32 low, u32 high,
			struct change *changes, struct best *best)
{
	for (u32 shift = low; shift <= high - WINDOW_BITS; shift++) {
		double met = crowd(sample, first_word + word, shift, changes);

		if (met < best->met)
			*best = (struct best){ { word, shift }, met };
	}
}

static bool is_same(const struct wildcard_window *one, const struct wildcard_window *other)
{
	return one->word == other->word && one->shift == other->shift;
}

/* Chooses windows for rules that are to come, and says whether they are others. */
bool choose_windows(struct family *family, const u64 *rules, u32 count)
{
	u32 stride = count > SAMPLE ? count / SAMPLE : 1;
	struct sample sample = { rules, family->words, family->rule_words, stride, count / stride };
	struct wildcard_index *index = family->index;
	struct best source = { index->source, 1e300 }, destination = { index->destination, 1e300 };
	struct change *changes = calloc(LAST_LEAF + 2, sizeof(*changes));

	if (!changes)
		return false;
	if (family->words == WILDCARD_WORDS_V4) {
		try_windows(&sample, 0, 0, 32, 64, changes, &source);
		try_windows(&sample, 0, 0, 0, 32, changes, &destination);
	}
	for (u32 word = 0; word < 2 && family->words == WILDCARD_WORDS_V6; word++) {
		try_windows(&sample, 0, word, 0, 64, changes, &source);
		try_windows(&sample, 2, word, 0, 64, changes, &destination);
	}
	free(changes);
	if (is_same(&source.window, &index->source) &&
	    is_same(&destination.window, &index->destination))
		return false;
	index->source = source.window;
	index->destination = destination.window;
	return true;
}
