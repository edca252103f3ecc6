/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The writer of wildcard tables: what its files share.
 *
 * A table's IPv4 and IPv6 are apart; a struct family is one of them. Its three arrays
 * are the kernel's own memory, mapped; packets read them while they are written.
 * Three rules keep every packet's answer right:
 *
 *  - What packets can reach is never written over. A change is made where nothing
 *    leads to and published by one aligned store: of a slot for a run of rules, of
 *    a place for the whole hash table of a tuple.
 *  - What packets could reach until now is retired. It is reclaimed, and used again,
 *    only when all that began by then are through (grace.c).
 *  - Columns and tops are widened before a rule is published, and narrowed after it
 *    is gone.
 *
 * Stores that publish are releases. A packet needs no barrier: the address of each
 * of its loads comes from the load before.
 */
#ifndef TOWPATH_NATIVE_WILDCARD_H
#define TOWPATH_NATIVE_WILDCARD_H

#include <stdbool.h>
#include <stddef.h>

#include "abi/wildcard.h"
#include "export.h"

typedef __u64 u64;
typedef __u32 u32;
typedef __u16 u16;
typedef __u8 u8;

enum {
	MAX_WORDS = WILDCARD_WORDS_V6,
	MIN_ORDER = 3, /* 8 slots are a cache line */
	MAX_ORDERS = 25,
	NOWHERE = 0xffffffff,
	MAX_RETIRED = 4, /* what a change retires at most, besides what a resize does */
};

/* What the functions that Python calls return. */
enum status {
	DONE = 0,
	PENDING = 1,	  /* the old rule goes by towpath_wildcard_finish() */
	FULL = -1,	  /* as many rules as it was made for */
	NO_SPACE = -2,	  /* towpath_wildcard_reclaim() or _compact() may help */
	TOO_COMPLEX = -3, /* all tuples that would do have a full run there */
	NO_SUCH_RULE = -4,
	NO_MEMORY = -5,
	NO_DEVICE = -6, /* as many devices as rules can name */
	DAMAGED = -7,	/* what is in the arrays isn't a table */
};

/* Where a rule is: the tuple, and its hash there. */
struct place {
	u64 number; /* of the rule, 0 = free */
	u64 hash;
	u32 tuple;
	u32 version;
};

struct directory {
	struct place *places;
	u32 size; /* a power of two */
	u32 count;
};

/* What only the writer knows of a tuple. */
struct tuple {
	bool used; /* its bit is not to be had, because of rules or of what is retired */
	bool live; /* rules may be put into it */
	u32 rules;
	u32 runs;
	u32 removals; /* since columns and top were last made to fit */
};

struct retired {
	enum { RETIRED_RULES, RETIRED_SLOTS, RETIRED_TUPLE, RETIRED_DEVICE } kind;
	u32 at;
	u32 count;
};

struct family {
	u32 words;	/* of a key */
	u32 rule_words; /* of a rule, in the array */
	u32 limit;	/* rules that it promises to hold */
	struct wildcard_index *index;
	u64 *slots;
	u64 *rules;
	u32 slot_count;
	u32 rule_count;
	struct tuple tuples[WILDCARD_TUPLES];
	struct directory directory;

	u64 *taken; /* a bit for each rule of the array */
	u32 hint;   /* no rule before this one is free */
	u32 unused; /* rules that are free */
	u8 *orders; /* for each block of 8 slots that begins an allocation */
	u32 unused_slots;
	u32 device_uses[WILDCARD_DEVICES + 1];
	bool device_taken[WILDCARD_DEVICES + 1];

	struct place *replaced; /* old places of rules that have two */
	u32 replaced_count;
	u32 replaced_room;

	struct wildcard_index *scratch;
	struct retired *retired;
	u32 retired_count;
	u32 retired_capacity;
};

/* ---- the arrays ---- */

static inline struct wildcard_rule *rule_at(const struct family *family, u32 at)
{
	return (struct wildcard_rule *)(family->rules + (size_t)at * family->rule_words);
}

static inline u64 *bits_of(const struct wildcard_rule *rule)
{
	return (u64 *)(rule + 1);
}

static inline u64 *mask_of(const struct family *family, const struct wildcard_rule *rule)
{
	return bits_of(rule) + family->words;
}

static inline u64 number_of(const struct wildcard_rule *rule)
{
	return ~rule->rank & ((1ULL << WILDCARD_PRIORITY) - 1);
}

static inline struct wildcard_tuple *tuple_at(const struct family *family, u32 bit)
{
	return &family->index->tuples[(1ULL << bit) * WILDCARD_BIT_HASH >> 58];
}

static inline u32 run_first(u64 slot)
{
	return slot & ((1U << WILDCARD_COUNT) - 1);
}

static inline u32 run_count(u64 slot)
{
	return (u8)(slot >> WILDCARD_COUNT);
}

static inline u32 place_first(u64 place)
{
	return (u32)place;
}

static inline u32 place_size(u64 place)
{
	return (u32)(place >> WILDCARD_SIZE) + 1;
}

/* The slot that a hash leads to, in the array. */
static inline u32 slot_of(u64 place, u64 hash)
{
	return place_first(place) + ((u32)(hash >> WILDCARD_SLOT) & (place_size(place) - 1));
}

static inline u32 order_of(u64 place)
{
	return __builtin_ctz(place_size(place));
}

static inline u64 make_place(u32 first, u32 order)
{
	return (u64)((1U << order) - 1) << WILDCARD_SIZE | first;
}

static inline void publish(u64 *word, u64 value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* ---- alloc.c: room in the arrays ---- */
u32 take_rules(struct family *family, u32 count);
bool reserve_rules(struct family *family, u32 at, u32 count);
void free_rules(struct family *family, u32 at, u32 count);
u32 take_slots(struct family *family, u32 order, u32 keep);
bool reserve_slots(struct family *family, u32 at, u32 order);
void free_slots(struct family *family, u32 at);

/* ---- grace.c: what packets may still be reading ---- */
bool reserve_retired(struct family *family, u32 count);
void retire(struct family *family, int kind, u32 at, u32 count);

/* ---- directory.c: where each rule is ---- */
struct place *find_place(const struct family *family, u64 number);
bool reserve_place(struct family *family);
struct place *add_place(struct family *family, u64 number);
void remove_place(struct family *family, struct place *place);

/* ---- columns.c: which tuples a packet has to look into ---- */
void widen(struct family *family, u32 bit, const struct wildcard_rule *rule);
void refit(struct family *family, u32 bit);
void clear_columns(struct family *family, u32 bit);
void raise_top(struct family *family, u32 bit, u64 rank);
void refit_ceilings(struct family *family);
void forget(struct family *family, u32 bit);

/* ---- window.c: what the columns look at ---- */
bool choose_windows(struct family *family, const u64 *rules, u32 count);

/* ---- tuples.c: the hash tables ---- */
u64 hash_in(const struct family *family, u32 bit, const u64 *bits);
bool is_within(const struct family *family, const u64 *mask, const u64 *wider);
int make_tuple(struct family *family, const u64 *mask);
void empty_tuple(struct family *family, u32 bit);

/* ---- resize.c ---- */
int resize_tuple(struct family *family, u32 bit, u32 order);
void shrink_tuple(struct family *family, u32 bit);

/* ---- runs.c: rules that share a slot ---- */
u32 count_in_run(const struct family *family, u32 bit, u64 hash);
int add_to_run(struct family *family, u32 bit, u64 hash, const struct wildcard_rule *rule);
int take_from_run(struct family *family, const struct place *place);
int change_in_run(struct family *family, const struct place *place,
		  const struct wildcard_rule *rule);
u64 make_run(struct family *family, u32 bit, const struct wildcard_rule *const *rules, u32 count);
struct wildcard_rule *find_in_run(const struct family *family, const struct place *place);

/* ---- select.c: which tuple a rule goes into ---- */
int choose_tuple(struct family *family, const struct wildcard_rule *rule);

/* ---- devices.c ---- */
void use_device(struct family *family, const struct wildcard_rule *rule, int change);
int adopt_devices(struct family *family);

/* ---- adopt.c ---- */
int adopt(struct family *family);

/* ---- family.c ---- */
bool prepare_change(struct family *family);
int publish_in(struct family *family, u32 bit, const struct wildcard_rule *rule,
	       struct place *place);
int withdraw(struct family *family, const struct place *place);

/* ---- replace.c ---- */
bool reserve_replaced(struct family *family);
PUBLIC int towpath_wildcard_finish(struct family *family);

#endif
