/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers for the devices that rules name.
 *
 * A key has 12 bits for its ingress device, and an interface index has 32; so those
 * that rules name get numbers, all others are 0. A number that no rule uses any
 * more stays with its device until numbers run out.
 */
#include "wildcard/wildcard.h"

enum {
	DEVICE_BITS = 0xfff, /* in the last word of a key */
};

static u64 *device_slot(struct family *family, u32 ifindex, u32 probe)
{
	u32 at = (WILDCARD_DEVICE_SLOT(ifindex) + probe) & (WILDCARD_DEVICE_SLOTS - 1);

	return &family->index->devices[at];
}

/* The slot that has a device; else the first that could have it; NULL = none. */
static u64 *find_device(struct family *family, u32 ifindex)
{
	u64 *vacant = NULL;

	for (u32 probe = 0; probe < WILDCARD_DEVICE_PROBES; probe++) {
		u64 *slot = device_slot(family, ifindex, probe);

		if (*slot >> WILDCARD_IFINDEX == ifindex && *slot)
			return slot;
		if (!(u32)*slot && !vacant)
			vacant = slot;
		if (!*slot)
			break;
	}
	return vacant;
}

/* Takes the numbers that no rule uses from their devices. */
static bool withdraw_unused(struct family *family)
{
	bool any = false;

	for (u32 at = 0; at < WILDCARD_DEVICE_SLOTS; at++) {
		u64 *slot = &family->index->devices[at];
		u32 number = (u32)*slot;

		if (!number || family->device_uses[number] || !reserve_retired(family, 1))
			continue;
		publish(slot, *slot >> WILDCARD_IFINDEX << WILDCARD_IFINDEX);
		retire(family, RETIRED_DEVICE, number, 0);
		any = true;
	}
	return any;
}

static int make_device(struct family *family, u64 *slot, u32 ifindex)
{
	for (u32 number = 1; number <= WILDCARD_DEVICES; number++) {
		if (family->device_taken[number])
			continue;
		family->device_taken[number] = true;
		publish(slot, (u64)ifindex << WILDCARD_IFINDEX | number);
		return number;
	}
	return NO_DEVICE;
}

/*
 * The number for an interface index (not 0), or a status. It is held until
 * towpath_wildcard_release(), since the rules that it is for aren't there yet.
 */
PUBLIC int towpath_wildcard_device(struct family *family, u32 ifindex)
{
	u64 *slot = find_device(family, ifindex);
	int number = NO_DEVICE;

	if (slot && (u32)*slot)
		number = (u32)*slot;
	else if (slot)
		number = make_device(family, slot, ifindex);
	if (number >= 0)
		family->device_uses[number]++;
	else if (withdraw_unused(family) || family->retired_count)
		return NO_SPACE;
	return number;
}

PUBLIC void towpath_wildcard_release(struct family *family, u32 number)
{
	family->device_uses[number]--;
}

/* Counts a rule's use of its device, up or down. */
void use_device(struct family *family, const struct wildcard_rule *rule, int change)
{
	u32 last = family->words - 1;

	if (mask_of(family, rule)[last] & DEVICE_BITS)
		family->device_uses[bits_of(rule)[last] & DEVICE_BITS] += change;
}

/* Takes over the numbers that are given out. */
int adopt_devices(struct family *family)
{
	for (u32 at = 0; at < WILDCARD_DEVICE_SLOTS; at++) {
		u32 number = (u32)family->index->devices[at];

		if (number > WILDCARD_DEVICES || (number && family->device_taken[number]))
			return DAMAGED;
		family->device_taken[number] = true;
	}
	family->device_taken[0] = true;
	return DONE;
}
