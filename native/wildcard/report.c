/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a half, and room made by moving it. */
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
typedef void visit(struct half *half, u32 bit, u64 *slot, void *to);

static void visit_runs(struct half *half, visit *visit, void *to)
{
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		u64 place = tuple_at(half, bit)->place;

		if (!half->tuples[bit].live)
			continue;
		for (u32 at = 0; at < place_size(place); at++)
			if (half->slots[place_first(place) + at])
				visit(half, bit, &half->slots[place_first(place) + at], to);
	}
}

static void list_run(struct half *half, u32 bit, u64 *slot, void *to)
{
	size_t words = (size_t)run_count(*slot) * half->rule_words;
	u64 **next = to;

	(void)bit;
	memcpy(*next, rule_at(half, run_first(*slot)), words * sizeof(u64));
	*next += words;
}

/* Copies all rules, in no order. `to` has room for as many as there are. */
PUBLIC void towpath_wildcard_list(struct half *half, u64 *to)
{
	visit_runs(half, list_run, &to);
}

/* Whether there is a rule of that number. */
PUBLIC int towpath_wildcard_has(struct half *half, u64 number)
{
	return !!find_place(half, number);
}

/* Copies one rule. */
PUBLIC int towpath_wildcard_get(struct half *half, u64 number, u64 *to)
{
	struct place *place = find_place(half, number);

	if (!place)
		return NO_SUCH_RULE;
	memcpy(to, find_in_run(half, place), half->rule_words * sizeof(u64));
	return DONE;
}

static void count_run(struct half *half, u32 bit, u64 *slot, void *to)
{
	struct report *report = to;

	(void)half;
	(void)bit;
	report->runs++;
	if (run_count(*slot) > report->longest_run)
		report->longest_run = run_count(*slot);
}

PUBLIC void towpath_wildcard_report(struct half *half, struct report *report)
{
	*report = (struct report){
		.rules = half->directory.count,
		.limit = half->limit,
		.retired = half->retired_count,
		.unused = half->unused,
	};
	for (u32 bit = 0; bit < WILDCARD_TUPLES; bit++) {
		if (!half->tuples[bit].rules)
			continue;
		report->tuples++;
		report->slots += place_size(tuple_at(half, bit)->place);
	}
	visit_runs(half, count_run, report);
}

/* Moves a run to the front of the array, if there is room before it. */
static void move_run(struct half *half, u32 bit, u64 *slot, void *to)
{
	u32 count = run_count(*slot), first = run_first(*slot), better = take_rules(half, count);

	(void)bit;
	(void)to;
	if (better == NOWHERE)
		return;
	if (better > first || !reserve_retired(half, 1)) {
		free_rules(half, better, count);
		return;
	}
	memcpy(rule_at(half, better), rule_at(half, first),
	       (size_t)count * half->rule_words * sizeof(u64));
	publish(slot, *slot - first + better);
	retire(half, RETIRED_RULES, first, count);
}

/*
 * Moves runs together: where free rules are many, but nowhere so many side by side
 * as a run needs, they will be once what is retired now is freed.
 */
PUBLIC void towpath_wildcard_compact(struct half *half)
{
	visit_runs(half, move_run, NULL);
}
