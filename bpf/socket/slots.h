/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Notes of connections of TCP, in a table: storage at the socket, which the kernel would allocate
 * for each and free again, takes some ten times as long. A socket's cookie, which no other has
 * until the machine is restarted, says which place may be its own. One whose place is taken has
 * its note at the socket: nothing is lost when it is full.
 */
#ifndef TOWPATH_SOCKET_SLOTS_H
#define TOWPATH_SOCKET_SLOTS_H

#include "abi/socket.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SOCKET_SLOTS);
	__type(key, __u32);
	__type(value, struct socket_slot);
} socket_slots SEC(".maps");

_Static_assert((SOCKET_SLOTS & (SOCKET_SLOTS - 1)) == 0, "low bits are a place");

static __always_inline struct socket_slot *slot_of(__u64 cookie)
{
	__u32 at = cookie & (SOCKET_SLOTS - 1);

	return bpf_map_lookup_elem(&socket_slots, &at);
}

/* A socket's place, if it has one. */
static __always_inline struct socket_slot *slot_find(__u64 cookie)
{
	struct socket_slot *slot = slot_of(cookie);

	return slot && slot->cookie == cookie ? slot : NULL;
}

/* The same, which it has from now on if it is nobody's. */
static __always_inline struct socket_slot *slot_take(__u64 cookie)
{
	struct socket_slot *slot = slot_of(cookie);

	if (!slot)
		return NULL;
	if (!slot->cookie) {
		/* 5.10 has no compare-and-exchange. */
		bpf_spin_lock(&slot->lock);
		if (!slot->cookie)
			slot->cookie = cookie;
		bpf_spin_unlock(&slot->lock);
	}
	return slot->cookie == cookie ? slot : NULL;
}

/* Leaves it as it was before anybody had it. */
static __always_inline void slot_leave(__u64 cookie)
{
	struct socket_slot *slot = slot_find(cookie);

	if (!slot)
		return;
	slot->note.family = FAMILY_NONE;
	slot->note.connects = 0;
	bpf_spin_lock(&slot->lock); /* after what is above */
	slot->cookie = 0;
	bpf_spin_unlock(&slot->lock);
}

#endif
