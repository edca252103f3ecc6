/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The memory of a wildcard table: what user space writes and wildcard.h reads.
 *
 * It is apart from the others because other people's programs include it, and so does
 * native/wildcard.h, the writer. Python reads it from the BTF of whatever object
 * has the table. The rules of base.h hold here too: no implicit padding, enums for
 * numbers that have a name.
 *
 * A table has two families, IPv4 and IPv6, that know nothing of each other. A family
 * is three arrays:
 *
 *   index   one struct wildcard_index: which tuples a packet has to look into
 *   slots   the hash tables of all tuples, a word to a slot
 *   rules   the rules, those that share a slot side by side: a run
 *
 * A packet is a key of 64-bit words in host order, two for IPv4 and five for IPv6:
 *
 *   IPv4   source << 32 | destination;  rest
 *   IPv6   source, high and low half;  destination, high and low half;  rest
 *   rest   sport << 48 | dport << 32 | protocol << 24 | vlan << 12 | device
 *
 * `device` is a number that stands for an ingress device, see `devices` below.
 */
#ifndef TOWPATH_ABI_WILDCARD_H
#define TOWPATH_ABI_WILDCARD_H

#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum wildcard_limits {
	WILDCARD_WORDS_V4 = 2, /* of a key */
	WILDCARD_WORDS_V6 = 5,
	WILDCARD_TUPLES = 64, /* a bit each in the words of the columns */
	WILDCARD_RUN = 16,    /* rules in a run at most: all of them are looked at */
	WILDCARD_WINDOW_LEAVES = 1 << 13,
	WILDCARD_PORT_LEAVES = 1 << 12,
	WILDCARD_PROTOCOLS = 256,
	WILDCARD_DEVICES = 255, /* that rules name at a time */
	WILDCARD_DEVICE_SLOTS = 1024,
	WILDCARD_DEVICE_PROBES = 16, /* slots looked at before giving up */
	WILDCARD_SPARE = 4096,	     /* room for rules that are on their way in or out */
};

enum wildcard_shifts {
	WILDCARD_SPORT = 48, /* in the last word of a key */
	WILDCARD_DPORT = 32,
	WILDCARD_PROTOCOL = 24,
	WILDCARD_VLAN = 12,

	WILDCARD_COUNT = 24, /* in a slot: rules in the run, above where it begins */
	WILDCARD_MARKS = 32, /* in a slot: a bit for each key in the run, by its hash */

	WILDCARD_SLOT = 32, /* in a hash: which slot */
	WILDCARD_MARK = 59, /* in a hash: which of the 32 marks */

	WILDCARD_SIZE = 32, /* in a place: slots less one, above the first slot */

	WILDCARD_PRIORITY = 44, /* in a rank: the priority, above the number */

	WILDCARD_IFINDEX = 32, /* in a slot of devices, above the number */
};

enum wildcard_flags {
	WILDCARD_BOTH = 1 << 0, /* of all addresses: in the other family as well */
};

/*
 * A rule. The one with the highest rank wins: the priority in the high 20 bits, in
 * the others the complement of the rule's number, so that of two with one priority
 * the older wins. Numbers count up from 1 and are never used again.
 *
 * bits and mask follow, as many words as a key has. A port is in a range if it is
 * `low` or at most `span` above.
 */
struct wildcard_rule {
	__u64 rank;
	__u64 value;
	__u16 sport_low;
	__u16 sport_span;
	__u16 dport_low;
	__u16 dport_span;
	__u32 version; /* higher in what replaces a rule under its number */
	__u32 flags;   /* enum wildcard_flags */
};

struct wildcard_rule4 {
	struct wildcard_rule head;
	__u64 bits[2];
	__u64 mask[2];
};

struct wildcard_rule6 {
	struct wildcard_rule head;
	__u64 bits[5];
	__u64 mask[5];
	__u64 _reserved[2];
};

/*
 * Rules whose masks have at least these bits in common are in one hash table, by
 * what they have there. None of them has a higher rank than `top`, and none in this
 * tuple or one of a higher bit a higher rank than `ceiling`.
 */
struct wildcard_tuple {
	__u64 mask[5];
	__u64 top;
	__u64 ceiling;
	__u64 place; /* of its slots, in one word: they are replaced as a whole */
};

/* Part of an address: so many bits of a word of the key, after a shift to the right. */
struct wildcard_window {
	__u32 word;
	__u32 shift;
};

/*
 * Each bit of a column's words stands for a tuple. It is set at every leaf (value
 * of the window, of the folded port, of the protocol) that some rule of the tuple
 * matches. A packet looks only into tuples whose bit is set in all four columns.
 * Where a rule matches very many leaves, the bit is set in `any` instead, which
 * counts for the whole column. A bit too many costs time, a bit too few would cost
 * an answer.
 *
 * The tuple of bit b is tuples[(1 << b) * WILDCARD_BIT_HASH >> 58]: BPF has no
 * instruction for the number of a bit, and so none is needed.
 *
 * `devices` leads from interface indexes to the numbers of devices in keys, by open
 * addressing: ifindex << 32 | number. 0 was never used; number 0 is no longer used.
 */
struct wildcard_index {
	__u64 multipliers[6]; /* odd and random; 0: nobody has opened the table yet */
	struct wildcard_window source;
	struct wildcard_window destination;
	__u64 any_source;
	__u64 any_destination;
	__u64 any_port;
	__u64 any_protocol;
	__u64 last_number; /* that a rule has been given, in this family or the other */
	__u64 changes;	   /* of rules, counted before packets see them */
	__u64 _reserved[2];
	struct wildcard_tuple tuples[64];
	__u64 devices[1024];
	__u64 protocols[256];
	__u64 sources[1 << 13];
	__u64 destinations[1 << 13];
	__u64 ports[1 << 12]; /* of destinations */
};

#pragma GCC diagnostic pop

/* A de Bruijn sequence: shifted by b, its six high bits are others for each b. */
#define WILDCARD_BIT_HASH 0x03f79d71b4cb0a89ULL

/* A port's leaf: the high four bits folded onto the low twelve. */
#define WILDCARD_PORT_LEAF(port) (((port) ^ (port) >> 12) & (WILDCARD_PORT_LEAVES - 1))

/* Where the search for a device begins. */
#define WILDCARD_DEVICE_SLOT(ifindex) ((ifindex) * 0x9e3779b1U >> 22)

/*
 * Elements of the arrays of a family that is to hold so many rules: a quarter more
 * rules, since each change writes its run anew beside the old one, and four slots
 * for each.
 */
#define WILDCARD_RULES_ROOM(rules) ((rules) + (rules) / 4 + WILDCARD_SPARE)
#define WILDCARD_SLOTS_ROOM(rules) (((rules) / 2 + 256) * 8)

#endif
