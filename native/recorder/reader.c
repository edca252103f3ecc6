/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Empties a BPF ring buffer (kernel/bpf/ringbuf.c) of records, many in one call, and writes
 * them as pcapng. What it can't know, the names of devices, services and backends, it asks its
 * caller for, once each.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "recorder/record.h"

/* <linux/bpf.h> has these too, among thousands of lines. */
enum ring {
	RING_HEADER = 8,
	RING_ALIGN = 8,
};

enum clocks {
	MAX_CHANGES = 16, /* of the clock that are remembered: a ring is read long before so many */
};

/* From a moment on, what CLOCK_MONOTONIC lacks to nanoseconds since 1970. */
struct change {
	u64 since; /* by CLOCK_MONOTONIC */
	u64 offset;
};

static const u32 RING_BUSY = 1u << 31;
static const u32 RING_DISCARDED = 1u << 30;

enum status {
	STATUS_EMPTY,	  /* all that there is was taken */
	STATUS_ROOM,	  /* `out` has no room for the next block */
	STATUS_INTERFACE, /* the next record is of a device and direction without a number */
	STATUS_LABEL,	  /* the next record is of an outcome without a text */
	STATUS_DAMAGED,	  /* that is no record: nothing is read any more */
};

struct reader {
	struct table names; /* first: towpath_record_* of names take a reader as well */
	const u8 *data;	    /* twice, one behind the other, so that no record is cut */
	u64 mask;
	u64 *consumer;
	const u64 *producer;
	struct change clock[MAX_CHANGES]; /* the last ones, in order */
	u32 changes;
	u32 _reserved;
	u64 max_packets; /* that are taken; all others are passed over */
	u64 max_bytes;
	u64 packets;
	u64 records;
	u64 bytes;   /* of frames, as they were captured */
	u64 lost;    /* records that had no room, and that is not in the file yet */
	u64 lost_at; /* the position in the ring at which that was known */
	u32 cpus;
	u64 last[]; /* packet that was taken, by CPU, plus 1 */
};

/* What a call did, and what it wants to know. */
struct report {
	u64 written; /* bytes of `out` */
	u64 packets;
	u64 records;
	u64 bytes;
	u32 status; /* enum status */
	u32 ended;  /* no further packet will be taken */
	u32 ifindex;
	u32 direction;
	u32 service;
	u32 handle;
	u32 verdict;
	u32 _reserved;
};

/* `size`: bytes of the ring, a power of two. NULL: no memory. */
PUBLIC struct reader *towpath_record_open(u64 *consumer, const u64 *producer, const u8 *data,
					  u64 size, u64 clock, u32 cpus)
{
	struct reader *made = calloc(1, sizeof(*made) + cpus * sizeof(made->last[0]));

	if (!made)
		return NULL;
	made->data = data;
	made->mask = size - 1;
	made->consumer = consumer;
	made->producer = producer;
	made->clock[0].offset = clock;
	made->changes = 1;
	made->max_packets = made->max_bytes = UINT64_MAX;
	made->cpus = cpus;
	return made;
}

PUBLIC void towpath_record_close(struct reader *reader)
{
	towpath_record_forget(&reader->names);
	free(reader->names.interfaces);
	free(reader);
}

PUBLIC void towpath_record_limit(struct reader *reader, u64 packets, u64 bytes)
{
	reader->max_packets = packets;
	reader->max_bytes = bytes;
}

/* What was captured since then has been by a clock that is other than before. */
PUBLIC void towpath_record_clock(struct reader *reader, u64 since, u64 offset)
{
	if (reader->changes == MAX_CHANGES) {
		memmove(reader->clock, reader->clock + 1,
			(MAX_CHANGES - 1) * sizeof(*reader->clock));
		reader->changes--;
	}
	reader->clock[reader->changes++] = (struct change){ since, offset };
}

/* So many more records had no room by now: the next packet says so. */
PUBLIC void towpath_record_lost(struct reader *reader, u64 count)
{
	if (!reader->lost)
		reader->lost_at = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);
	reader->lost += count;
}

/* Nanoseconds since 1970. */
static u64 wall_time(const struct reader *reader, u64 time)
{
	u32 at = reader->changes - 1;

	while (at && time < reader->clock[at].since)
		at--;
	return time + reader->clock[at].offset;
}

static bool is_full(const struct reader *reader)
{
	return reader->packets >= reader->max_packets || reader->bytes >= reader->max_bytes;
}

/*
 * Whether a record is of a packet that is taken. Both records of a packet are written by its
 * CPU one right after the other: what comes of the packet that was last taken there is too.
 */
static bool take(struct reader *reader, const struct record *head)
{
	u64 *last = &reader->last[(head->packet >> RECORD_CPU_SHIFT) % reader->cpus];

	if (*last == head->packet + 1)
		return true;
	if (is_full(reader))
		return false;
	*last = head->packet + 1;
	reader->packets++;
	return true;
}

static bool is_record(const struct record *head, u32 length)
{
	return length >= sizeof(*head) && head->captured <= length - sizeof(*head) &&
	       head->captured <= RECORD_MAX_SNAPLEN && head->direction <= RECORD_OUT;
}

static u32 ask(struct report *report, const struct record *head, enum status what)
{
	report->ifindex = head->ifindex;
	report->direction = head->direction;
	report->service = head->service;
	report->handle = head->handle;
	report->verdict = head->verdict;
	return what;
}

/* One record, at a position in the ring, to `out`, if it is of a packet that is taken. */
static u32 convert(struct reader *reader, u64 at, u32 length, u8 *out, u64 room,
		   struct report *report)
{
	const struct record *head =
		(const struct record *)(reader->data + (at & reader->mask) + RING_HEADER);
	u64 lost = at >= reader->lost_at ? reader->lost : 0;
	struct interface *interface;
	const struct label *label;
	u32 size;

	if (!is_record(head, length))
		return STATUS_DAMAGED;
	interface = find_interface(&reader->names, head->ifindex, head->direction);
	if (!interface)
		return ask(report, head, STATUS_INTERFACE);
	label = find_label(&reader->names, head);
	if (!label)
		return ask(report, head, STATUS_LABEL);
	size = block_size(head, label, lost);
	if (size > room - report->written)
		return STATUS_ROOM;
	if (!take(reader, head))
		return STATUS_EMPTY;
	write_block(out + report->written, head, (const u8 *)(head + 1), label, lost, interface->id,
		    wall_time(reader, head->time));
	reader->lost -= lost;
	report->written += size;
	interface->records++;
	reader->records++;
	reader->bytes += head->captured;
	return STATUS_EMPTY;
}

/* An entry of the ring takes this much, what is in its header aside. */
static u64 entry_size(u32 length)
{
	return (RING_HEADER + length + RING_ALIGN - 1) & ~(u64)(RING_ALIGN - 1);
}

/*
 * Gives up the oldest records until no more than `keep` bytes of the ring are taken; their headers
 * alone are looked at. Returns how many bytes are taken then.
 */
PUBLIC u64 towpath_record_trim(struct reader *reader, u64 keep)
{
	u64 at = __atomic_load_n(reader->consumer, __ATOMIC_ACQUIRE);
	u64 end = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);

	while (end - at > keep) {
		const u8 *entry = reader->data + (at & reader->mask);
		u32 header = __atomic_load_n((const u32 *)entry, __ATOMIC_ACQUIRE);

		if (header & RING_BUSY)
			break;
		at += entry_size(header & ~RING_DISCARDED);
	}
	__atomic_store_n(reader->consumer, at, __ATOMIC_RELEASE);
	return end - at;
}

/*
 * Moves records from the ring to `out` until there is none left, or something is in the way.
 * What has been moved is the producers' again when this returns.
 */
PUBLIC void towpath_record_read(struct reader *reader, u8 *out, u64 room, struct report *report)
{
	u64 at = __atomic_load_n(reader->consumer, __ATOMIC_ACQUIRE);
	u64 end = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);
	u32 status = STATUS_EMPTY;

	memset(report, 0, sizeof(*report));
	while (at < end) {
		const u8 *entry = reader->data + (at & reader->mask);
		u32 header = __atomic_load_n((const u32 *)entry, __ATOMIC_ACQUIRE);
		u32 length = header & ~(RING_BUSY | RING_DISCARDED);

		if (header & RING_BUSY)
			break;
		if (!(header & RING_DISCARDED))
			status = convert(reader, at, length, out, room, report);
		if (status != STATUS_EMPTY)
			break;
		at += entry_size(length);
	}
	__atomic_store_n(reader->consumer, at, __ATOMIC_RELEASE);
	report->status = status;
	report->ended = is_full(reader);
	report->packets = reader->packets;
	report->records = reader->records;
	report->bytes = reader->bytes;
}
