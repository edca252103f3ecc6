/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tuples a packet has to look into: columns, tops and ceilings.
 *
 * They are kept wide enough at every moment, and made to fit again only now and
 * then, since that takes a look at every rule of a tuple. What is removed leaves a
 * bit too many behind until then, which costs a packet a look in vain.
 */
#include <string.h>

#include "wildcard/wildcard.h"

enum {
	/* A rule that matches more leaves sets the tuple's bit in `any`. */
	MAX_LEAVES = WILDCARD_WINDOW_LEAVES / 8,
	/* Made to fit again after so many removals, and as many as there are rules. */
	PATIENCE = 64,
};

/* Leaves of a column, from first to last in a row; `all` stands for too many. */
struct leaves {
	u32 first;
	u32 last;
	bool all;
};

static struct leaves window_leaves(const struct wildcard_window *window, const u64 *bits,
				   const u64 *mask)
{
	u32 fixed = mask[window->word] >> window->shift & (WILDCARD_WINDOW_LEAVES - 1);
	u32 first = bits[window->word] >> window->shift & fixed;
	u32 span = ~fixed & (WILDCARD_WINDOW_LEAVES - 1);

	return (struct leaves){ first, first + span, span >= MAX_LEAVES };
}

static struct leaves port_leaves(const struct wildcard_rule *rule)
{
	return (struct leaves){ rule->dport_low, rule->dport_low + rule->dport_span,
				rule->dport_span >= MAX_LEAVES };
}

static struct leaves protocol_leaves(const struct family *family, const struct wildcard_rule *rule)
{
	u32 last = family->words - 1;
	u32 protocol = bits_of(rule)[last] >> WILDCARD_PROTOCOL & 0xff;
	bool all = !(mask_of(family, rule)[last] >> WILDCARD_PROTOCOL & 0xff);

	return (struct leaves){ protocol, protocol, all };
}

static const u64 *source_of(const u64 *words)
{
	return words;
}

/* IPv4 has both addresses in one word. */
static const u64 *destination_of(const struct family *family, const u64 *words)
{
	return family->words == WILDCARD_WORDS_V4 ? words : words + 2;
}

static void set(u64 *word, u64 bit)
{
	if (!(*word & bit))
		publish(word, *word | bit);
}

static void clear(u64 *word, u64 bit)
{
	if (*word & bit)
		publish(word, *word & ~bit);
}

static void set_leaves(u64 *column, u64 *any, struct leaves leaves, u64 bit)
{
	if (leaves.all)
		set(any, bit);
	else
		for (u32 leaf = leaves.first; leaf <= leaves.last; leaf++)
			set(&column[leaf], bit);
}

static void set_ports(u64 *column, u64 *any, struct leaves leaves, u64 bit)
{
	if (leaves.all)
		set(any, bit);
	else
		for (u32 port = leaves.first; port <= leaves.last; port++)
			set(&column[WILDCARD_PORT_LEAF(port)], bit);
}

/* Lets packets that match the rule look into the tuple. */
static void widen_columns(struct family *family, struct wildcard_index *index, u64 bit,
			  const struct wildcard_rule *rule)
{
	const u64 *bits = bits_of(rule), *mask = mask_of(family, rule);

	set_leaves(index->sources, &index->any_source,
		   window_leaves(&index->source, source_of(bits), source_of(mask)), bit);
	set_leaves(index->destinations, &index->any_destination,
		   window_leaves(&index->destination, destination_of(family, bits),
				 destination_of(family, mask)),
		   bit);
	set_ports(index->ports, &index->any_port, port_leaves(rule), bit);
	set_leaves(index->protocols, &index->any_protocol, protocol_leaves(family, rule), bit);
}

void widen(struct family *family, u32 bit, const struct wildcard_rule *rule)
{
	widen_columns(family, family->index, 1ULL << bit, rule);
}

/* Clears the bit wherever it isn't set in the scratch index. */
static void narrow(u64 *column, const u64 *fitting, u32 leaves, u64 bit)
{
	for (u32 leaf = 0; leaf < leaves; leaf++)
		if (!fitting[leaf])
			clear(&column[leaf], bit);
}

static void narrow_columns(struct family *family, const struct wildcard_index *fitting, u64 bit)
{
	struct wildcard_index *index = family->index;

	narrow(&index->any_source, &fitting->any_source, 1, bit);
	narrow(&index->any_destination, &fitting->any_destination, 1, bit);
	narrow(&index->any_port, &fitting->any_port, 1, bit);
	narrow(&index->any_protocol, &fitting->any_protocol, 1, bit);
	narrow(index->sources, fitting->sources, WILDCARD_WINDOW_LEAVES, bit);
	narrow(index->destinations, fitting->destinations, WILDCARD_WINDOW_LEAVES, bit);
	narrow(index->ports, fitting->ports, WILDCARD_PORT_LEAVES, bit);
	narrow(index->protocols, fitting->protocols, WILDCARD_PROTOCOLS, bit);
}

/* An index in which nothing is set but the windows. */
static struct wildcard_index *blank(struct family *family)
{
	memset(family->scratch, 0, sizeof(*family->scratch));
	family->scratch->source = family->index->source;
	family->scratch->destination = family->index->destination;
	return family->scratch;
}

/* No packet looks into the tuple any more. */
void clear_columns(struct family *family, u32 bit)
{
	narrow_columns(family, blank(family), 1ULL << bit);
}

/* Makes columns, top and ceilings fit what is left in the tuple. */
void refit(struct family *family, u32 bit)
{
	u64 place = tuple_at(family, bit)->place, top = 0;
	struct wildcard_index *fitting = blank(family);

	for (u32 at = 0; at < place_size(place); at++) {
		u64 slot = family->slots[place_first(place) + at];

		for (u32 i = 0; i < run_count(slot); i++) {
			const struct wildcard_rule *rule = rule_at(family, run_first(slot) + i);

			widen_columns(family, fitting, 1, rule);
			top = rule->rank > top ? rule->rank : top;
		}
	}
	narrow_columns(family, fitting, 1ULL << bit);
	publish(&tuple_at(family, bit)->top, top);
	refit_ceilings(family);
	family->tuples[bit].removals = 0;
}

/* To be called when a rule has gone. */
void forget(struct family *family, u32 bit)
{
	struct tuple *tuple = &family->tuples[bit];

	if (++tuple->removals <= PATIENCE + tuple->rules)
		return;
	refit(family, bit);
	shrink_tuple(family, bit);
}

/* ---- tops ---- */

void refit_ceilings(struct family *family)
{
	u64 ceiling = 0;

	for (u32 bit = WILDCARD_TUPLES; bit-- > 0;) {
		struct wildcard_tuple *tuple = tuple_at(family, bit);

		if (tuple->top > ceiling)
			ceiling = tuple->top;
		if (tuple->ceiling != ceiling)
			publish(&tuple->ceiling, ceiling);
	}
}

/* To be called before a rule of that rank is published. */
void raise_top(struct family *family, u32 bit, u64 rank)
{
	struct wildcard_tuple *tuple = tuple_at(family, bit);

	if (tuple->top >= rank)
		return;
	publish(&tuple->top, rank);
	for (u32 below = 0; below <= bit; below++)
		if (tuple_at(family, below)->ceiling < rank)
			publish(&tuple_at(family, below)->ceiling, rank);
}
