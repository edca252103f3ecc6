/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What sockets note: to which backends they talk in place of which service. Hooks hold the
 * socket's lock, so no two of them are at one note.
 */
#ifndef TOWPATH_SOCKET_NOTES_H
#define TOWPATH_SOCKET_NOTES_H

#include "net/address.h"
#include "socket/decide.h"

static __always_inline __u32 seconds_now(void)
{
	return bpf_ktime_get_ns() / SECOND_NS;
}

/* Whether an address is the backend of a note. */
static __always_inline bool is_backend(const struct socket_note *note, const struct address *addr,
				       __be16 port, __u8 family)
{
	return note->family == family && note->backend_port == port &&
	       address_equal(&note->backend, addr);
}

static __always_inline bool is_service(const struct socket_note *note,
				       const struct socket_question *q)
{
	return note->family == q->family && note->vip_port == q->port &&
	       address_equal(&note->vip, &q->addr);
}

static __always_inline void note_down(struct socket_note *note, const struct socket_question *q,
				      const struct socket_answer *a)
{
	__u32 index = a->service;
	const __u64 *id = bpf_map_lookup_elem(&socket_service_ids, &index);

	note->backend = a->addr;
	note->backend_port = a->port;
	note->vip = q->addr;
	note->vip_port = q->port;
	note->service = id ? *id : 0;
	note->handle = a->handle;
	note->epoch = socket_epoch;
	note->seen = seconds_now();
	note->family = q->family;
	note->protocol = q->protocol;
}

/*
 * Has a question say where datagrams for the same address went before. Numbers go by way of the
 * map: read from there they are any to the verifier, which looks at what follows once.
 */
static __always_inline void recall(struct socket_peers *peers, struct socket_question *q)
{
	volatile __u32 *found = &peers->found;
	const struct socket_note *note;

	*found = SOCKET_PEERS;
	for (__u32 i = 0; i < SOCKET_PEERS; i++) {
		note = &peers->note[i];
		if (note->handle && note->epoch == socket_epoch && is_service(note, q))
			*found = i;
	}
	if (*found >= SOCKET_PEERS)
		return;
	note = &peers->note[*found & (SOCKET_PEERS - 1)];
	q->known = note->handle;
	q->seen = note->seen;
}

/*
 * Notes where a datagram goes: in the place of the note for the same backend, a free one, or the
 * one longest unused. Answers on the way of a backend that it no longer goes to still find
 * their note, but nothing is sent by it.
 */
static __always_inline void remember(struct socket_peers *peers, const struct socket_question *q,
				     const struct socket_answer *a)
{
	volatile __u32 *found = &peers->found;
	__u32 now = seconds_now(), oldest = 0;

	*found = 0;
	for (__u32 i = 0; i < SOCKET_PEERS; i++) {
		struct socket_note *note = &peers->note[i];
		__u32 age = note->family ? now - note->seen : ~0U - 1;

		if (is_backend(note, &a->addr, a->port, a->family))
			age = ~0U;
		else if (note->family && is_service(note, q))
			note->handle = 0;
		if (age > oldest) {
			oldest = age;
			*found = i;
		}
	}
	note_down(&peers->note[*found & (SOCKET_PEERS - 1)], q, a);
}

/* What is sent to an address as it is given is answered from there. */
static __always_inline void forget(struct socket_peers *peers, const struct socket_question *q)
{
	for (__u32 i = 0; i < SOCKET_PEERS; i++) {
		struct socket_note *note = &peers->note[i];

		if (is_backend(note, &q->addr, q->port, q->family))
			note->family = FAMILY_NONE;
	}
}

static __always_inline void note_mptcp(const struct socket_question *q,
				       const struct socket_answer *a)
{
	struct socket_mptcp_key key = {
		.netns = q->netns,
		.addr = a->addr,
		.port = a->port,
		.family = a->family,
	};
	struct socket_mptcp value = { .vip = q->addr, .port = q->port };
	const struct socket_mptcp *there = bpf_map_lookup_elem(&socket_mptcp, &key);

	if (!there || there->port != value.port || !address_equal(&there->vip, &value.vip))
		bpf_map_update_elem(&socket_mptcp, &key, &value, BPF_ANY);
}

#endif
