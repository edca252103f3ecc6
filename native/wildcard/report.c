/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a family, and room made by moving it. */
#include <string.h>

#include "wildcard/wildcard.h"

/* As core/classifier.py has it. */
struct report {
	u32 rules;
	u32 limit;
	u32 tuples; /* that have rules */
	u32 runs;
	u32 longest_run;
	u32 slots; /* that these tuples have */
	u32 retired;
	u32 unused; /* rules of the array that are free */
};

/* Calls for each slot that isn't empty. */
typedef void visit(struct family *family, u32 bit, u64 *slot, void *to);

static void visit_runs(struct family *family, visit *visit, void *to)
{
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		u64 place = tuple_at(family, bit)->place;

		if (!family->tuples[bit].live)
			continue;
		for (u32 at = 0; at < place_size(place); at++)
			if (family->slots[place_first(place) + at])
				visit(family, bit, &family->slots[place_first(place) + at], to);
	}
}

static void list_run(struct family *family, u32 bit, u64 *slot, void *to)
{
	size_t words = (size_t)run_count(*slot) * family->rule_words;
	u64 **next = to;

	(void)bit;
	memcpy(*next, rule_at(family, run_first(*slot)), words * sizeof(u64));
	*next += words;
}

/* Copies all rules, in no order. `to` has room for as many as there are. */
PUBLIC void towpath_wildcard_list(struct family *family, u64 *to)
{
	visit_runs(family, list_run, &to);
}

/* Whether there is a rule of that number. */
PUBLIC int towpath_wildcard_has(struct family *family, u64 number)
{
	return !!find_place(family, number);
}

/* Copies one rule. */
PUBLIC int towpath_wildcard_get(struct family *family, u64 number, u64 *to)
{
	struct place *place = find_place(family, number);

	if (!place)
		return NO_SUCH_RULE;
	memcpy(to, find_in_run(family, place), family->rule_words * sizeof(u64));
	return DONE;
}

static void count_run(struct family *family, u32 bit, u64 *slot, void *to)
{
	struct report *report = to;

	(void)family;
	(void)bit;
	report->runs++;
	if (run_count(*slot) > report->longest_run)
		report->longest_run = run_count(*slot);
}

PUBLIC void towpath_wildcard_report(struct family *family, struct report *report)
{
	*report = (struct report){
		.rules = family->directory.count,
		.limit = family->limit,
		.retired = family->retired_count,
		.unused = family->unused,
	};
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		if (!family->tuples[bit].rules)
			continue;
		report->tuples++;
		report->slots += place_size(tuple_at(family, bit)->place);
	}
	visit_runs(family, count_run, report);
}

/* Moves a run to the front of the array, if there is room before it. */
static void move_run(struct family *family, u32 bit, u64 *slot, void *to)
{
	u32 count = run_count(*slot), first = run_first(*slot), better = take_rules(family, count);

	(void)bit;
	(void)to;
	if (better == NOWHERE)
		return;
	if (better > first || !reserve_retired(family, 1)) {
		free_rules(family, better, count);
		return;
	}
	memcpy(rule_at(family, better), rule_at(family, first),
	       (size_t)count * family->rule_words * sizeof(u64));
	publish(slot, *slot - first + better);
	retire(family, RETIRED_RULES, first, count);
}

/*
 * Moves runs together: where free rules are many, but nowhere so many side by side
 * as a run needs, they will be once what is retired now is freed.
 */
PUBLIC void towpath_wildcard_compact(struct family *family)
{
	visit_runs(family, move_run, NULL);
}
