/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that the kernel itself translates (abi/lb.h), for whoever takes packets to services: those
 * that come in by devices, and those of pods.
 */
#ifndef TOWPATH_LB_TRACKED_FLOWS_H
#define TOWPATH_LB_TRACKED_FLOWS_H

#include "lb/maps.h"
#include "net/parse.h"

static __always_inline __u32 tracking_now(void)
{
	const struct settings *set;
	__u32 zero = 0;

	set = bpf_map_lookup_elem(&settings, &zero);
	return set ? *(const volatile __u8 *)&set->tracking : TRACKING_NONE;
}

/* As user space has them: of an IPv4 address nothing but the last word is set. */
static __always_inline struct flow_key tracked_key(const struct flow_key *flow)
{
	struct flow_key key = *flow;

	key._reserved = 0;
	return key;
}

/* The kernel knows a flow of UDP for longer by this packet, and user space that one has come. */
static __always_inline void tracked_seen(__u64 *until)
{
	__u64 known = *(volatile __u64 *)until, last = bpf_ktime_get_ns() + tracks_udp;

	if (last > known || !(known & TRACKED_SEEN))
		*(volatile __u64 *)until = (last > known ? last : known) | TRACKED_SEEN;
}

/*
 * Whether one of UDP is over by the kernel's own time: it has no packet of it that was seen here,
 * and so is not asked to keep it.
 */
static __always_inline bool tracked_is_over(const __u64 *until)
{
	__u64 known = *(const volatile __u64 *)until;

	return !(known & TRACKED_SEEN) && known < bpf_ktime_get_ns();
}

/*
 * Whether a packet of no flow that is known here is the kernel's, whose `key` is a tracked_key(). A
 * SYN is not: whatever had its addresses and ports before is over. `notes`: what the packet says of
 * its flow is noted; `begins`: it may be a flow's first one that is seen here.
 */
static __always_inline bool tracked_has_key(const struct flow_key *key, __u8 tcp_flags, bool notes,
					    bool begins)
{
	bool udp = key->protocol == IPPROTO_UDP;
	__u32 now = tracking_now();
	__u64 *until, last = 0;

	if (now == TRACKING_NONE)
		return false;
	until = bpf_map_lookup_elem(&tracked, key);
	if (key->protocol == IPPROTO_TCP && tcp_begins(tcp_flags)) {
		if (until && notes)
			bpf_map_delete_elem(&tracked, key);
		return false;
	}
	if (until && udp && tracked_is_over(until))
		until = NULL;
	if (until && udp && notes)
		tracked_seen(until);
	if (until || now != TRACKING_TAKE)
		return until != NULL;
	if (udp)
		last = (bpf_ktime_get_ns() + tracks_udp) | TRACKED_SEEN;
	if (notes && begins)
		bpf_map_update_elem(&tracked, key, &last, BPF_ANY);
	return true;
}

#endif
