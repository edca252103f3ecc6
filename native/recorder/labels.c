/* SPDX-License-Identifier: Apache-2.0 */
/* What the numbers in records are called: interfaces of the file, and texts. */
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "recorder/record.h"

enum {
	FIRST_ROOM = 64,
};

struct interface *find_interface(struct table *table, u32 ifindex, u32 direction)
{
	for (u32 i = 0; i < table->interface_count; i++) {
		struct interface *each = &table->interfaces[i];

		if (each->ifindex == ifindex && each->direction == direction)
			return each;
	}
	return NULL;
}

static u32 label_slot(const struct table *table, u32 service, u32 handle, u32 verdict)
{
	u64 hash = (service * 0x9e3779b97f4a7c15ULL ^ handle) * 0x9fb21c651e98df25ULL ^ verdict;

	return (hash ^ hash >> 32) * 0x9e3779b1u & (table->label_room - 1);
}

/* The label of these three, or the free place where it would be. */
static struct label *label_place(const struct table *table, u32 service, u32 handle, u32 verdict)
{
	u32 at = label_slot(table, service, handle, verdict);

	for (;; at = (at + 1) & (table->label_room - 1)) {
		struct label *each = &table->labels[at];

		if (!each->length || (each->service == service && each->handle == handle &&
				      each->verdict == verdict))
			return each;
	}
}

const struct label *find_label(const struct table *table, const struct record *head)
{
	const struct label *found;

	if (!table->label_room)
		return NULL;
	found = label_place(table, head->service, head->handle, head->verdict);
	return found->length ? found : NULL;
}

static int grow_labels(struct table *table)
{
	struct label *old = table->labels;
	u32 old_room = table->label_room, room = old_room ? old_room * 2 : FIRST_ROOM;
	struct label *made = calloc(room, sizeof(*made));

	if (!made)
		return -1;
	table->labels = made;
	table->label_room = room;
	for (u32 i = 0; i < old_room; i++)
		if (old[i].length)
			*label_place(table, old[i].service, old[i].handle, old[i].verdict) = old[i];
	free(old);
	return 0;
}

/* Returns 0, or -1 without memory. */
PUBLIC int towpath_record_interface(struct table *table, u32 ifindex, u32 direction, u32 id)
{
	struct interface *made = realloc(table->interfaces,
					 (table->interface_count + 1) * sizeof(*table->interfaces));

	if (!made)
		return -1;
	table->interfaces = made;
	made[table->interface_count++] = (struct interface){
		.ifindex = ifindex,
		.direction = direction,
		.id = id,
	};
	return 0;
}

/* How many records there have been of an interface, by the file's number. */
PUBLIC u64 towpath_record_count(const struct table *table, u32 id)
{
	for (u32 i = 0; i < table->interface_count; i++)
		if (table->interfaces[i].id == id)
			return table->interfaces[i].records;
	return 0;
}

/* Returns 0, or -1 without memory. A text has 1 to LABEL_MAX bytes. */
PUBLIC int towpath_record_label(struct table *table, u32 service, u32 handle, u32 verdict,
				const char *text, u32 length)
{
	struct label *place;

	if (table->label_count * 2 >= table->label_room && grow_labels(table))
		return -1;
	place = label_place(table, service, handle, verdict);
	if (!place->length)
		table->label_count++;
	*place = (struct label){
		.service = service,
		.handle = handle,
		.verdict = verdict,
		.length = length,
	};
	memcpy(place->text, text, length);
	return 0;
}

/* Forgets all labels: services and backends are others now. */
PUBLIC void towpath_record_forget(struct table *table)
{
	free(table->labels);
	table->labels = NULL;
	table->label_count = table->label_room = 0;
}
