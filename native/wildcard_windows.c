/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which part of the addresses the columns look at.
 *
 * A column has 13 bits of an address to go by. The best are those in which rules
 * differ: where all addresses begin with the same 48 bits, the first 13 tell
 * nothing.
 */
#include <string.h>

#include "wildcard.h"

enum {
	SAMPLE = 1024, /* rules looked at */
	WINDOW_BITS = 13,
	LAST_LEAF = WILDCARD_WINDOW_LEAVES - 1,
};

/* Rules to be sampled, `count` of them, so many words apart. */
struct sample {
	const u64 *rules;
	u32 words;
	u32 rule_words;
	u32 stride;
	u32 count;
};

/*
 * Packets that are spread as the rules are: how many rules would one find at its
 * leaf? What a rule adds to each of its leaves is noted where they begin, and taken
 * off where they end, so that one pass over the leaves sums it up.
 */
static double crowd(const struct sample *sample, u32 word, u32 shift)
{
	static double packets[WILDCARD_WINDOW_LEAVES + 1], rules[WILDCARD_WINDOW_LEAVES + 1];
	double packets_here = 0, rules_here = 0, met = 0;

	memset(packets, 0, sizeof(packets));
	memset(rules, 0, sizeof(rules));
	for (u32 i = 0; i < sample->count; i++) {
		const u64 *rule = sample->rules + (size_t)i * sample->stride * sample->rule_words;
		const u64 *bits = bits_of((const struct wildcard_rule *)rule);
		u32 fixed = bits[sample->words + word] >> shift & LAST_LEAF;
		u32 first = bits[word] >> shift & fixed;
		u32 end = first + (~fixed & LAST_LEAF) + 1;

		packets[first] += 1.0 / (end - first);
		packets[end] -= 1.0 / (end - first);
		rules[first]++;
		rules[end]--;
	}
	for (u32 leaf = 0; leaf <= LAST_LEAF; leaf++) {
		packets_here += packets[leaf];
		rules_here += rules[leaf];
		met += packets_here * rules_here;
	}
	return met;
}

/* The best of windows of one word, from some bit on up to another. */
static void better(const struct sample *sample, u32 first_word, u32 word, u32 low, u32 high,
		   struct wildcard_window *best, double *least)
{
	for (u32 shift = low; shift <= high - WINDOW_BITS; shift++) {
		double met = crowd(sample, first_word + word, shift);

		if (met < *least) {
			*least = met;
			*best = (struct wildcard_window){ word, shift };
		}
	}
}

/* Chooses windows for rules that are to come. Only for a half that has none. */
void choose_windows(struct half *half, const u64 *rules, u32 count)
{
	u32 stride = count > SAMPLE ? count / SAMPLE : 1;
	struct sample sample = { rules, half->words, half->rule_words, stride, count / stride };
	struct wildcard_window source = half->index->source;
	struct wildcard_window destination = half->index->destination;
	double least_source = 1e300, least_destination = 1e300;

	if (half->words == WILDCARD_WORDS_V4) {
		better(&sample, 0, 0, 32, 64, &source, &least_source);
		better(&sample, 0, 0, 0, 32, &destination, &least_destination);
	} else {
		for (u32 word = 0; word < 2; word++) {
			better(&sample, 0, word, 0, 64, &source, &least_source);
			better(&sample, 2, word, 0, 64, &destination, &least_destination);
		}
	}
	publish((u64 *)&half->index->source, *(u64 *)&source);
	publish((u64 *)&half->index->destination, *(u64 *)&destination);
}
