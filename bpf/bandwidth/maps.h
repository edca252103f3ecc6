/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of bandwidth, and which aggregate a packet is of. */
#ifndef TOWPATH_BANDWIDTH_MAPS_H
#define TOWPATH_BANDWIDTH_MAPS_H

#include "abi/bandwidth.h"
#include "net/parse.h"

/* Sizes of arrays are placeholders that user space sets. */
#define BW_MAP(name, map_type, entries, key_type, value_type) \
	struct {                                              \
		__uint(type, BPF_MAP_TYPE_##map_type);        \
		__uint(max_entries, entries);                 \
		__type(key, key_type);                        \
		__type(value, value_type);                    \
	} name SEC(".maps")

BW_MAP(bw_limits, ARRAY, 1, __u32, struct bandwidth_limit);
BW_MAP(bw_states, ARRAY, 1, __u32, struct bandwidth_state);
BW_MAP(bw_buckets, ARRAY, 1, __u32, struct bandwidth_bucket);
BW_MAP(bw_names, ARRAY, 1, __u32, struct bandwidth_name);
BW_MAP(bw_counts, PERCPU_ARRAY, 1, __u32, struct bandwidth_counts);
BW_MAP(bw_pods, HASH, 16384, __u32, struct bandwidth_pod); /* by the device's index */
BW_MAP(bw_pod_slots, ARRAY, BANDWIDTH_POD_SLOTS, __u32, struct bandwidth_pod);
BW_MAP(bw_addresses, HASH, 16384, struct bandwidth_address, __u32);
BW_MAP(bw_devices, HASH, 1024, __u32, __u32); /* those by which pods' packets leave */

/* Set before loading. */
const volatile __u32 bw_types = 0;	/* stamps have a type, and bpf_skb_set_tstamp() is there */
const volatile __u32 bw_tai = 0;	/* bpf_ktime_get_tai_ns() is there */
const volatile __u32 bw_direct = 0;	/* pods' packets go to their way out past the stack */
const volatile __u32 bw_by_address = 0; /* some pods are known by their addresses only */

static __always_inline struct bandwidth_limit *bw_limit(__u32 aggregate)
{
	return bpf_map_lookup_elem(&bw_limits, &aggregate);
}

static __always_inline struct bandwidth_state *bw_state(__u32 aggregate)
{
	return bpf_map_lookup_elem(&bw_states, &aggregate);
}

static __always_inline struct bandwidth_counts *bw_count(__u32 aggregate)
{
	return bpf_map_lookup_elem(&bw_counts, &aggregate);
}

/* A device's row. A look-up in a hash would be the most that marking takes. */
static __always_inline struct bandwidth_pod *bw_pod(__u32 ifindex)
{
	__u32 slot = ifindex % BANDWIDTH_POD_SLOTS;
	struct bandwidth_pod *pod = bpf_map_lookup_elem(&bw_pod_slots, &slot);

	if (likely(pod && pod->ifindex == ifindex))
		return pod;
	return bpf_map_lookup_elem(&bw_pods, &ifindex);
}

static __always_inline bool bw_is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* ns that a packet takes at a rate of bytes and of packets: of the two, the one that is slower. */
static __always_inline __u64 bw_cost(const struct __sk_buff *skb, __u64 per_byte, __u64 per_packet)
{
	__u64 half = 1 << (BANDWIDTH_COST_SHIFT - 1);
	__u64 bytes = (skb->wire_len * per_byte + half) >> BANDWIDTH_COST_SHIFT;
	__u64 packets = (skb->gso_segs ?: 1) * per_packet;

	return bytes > packets ? bytes : packets;
}

/* The aggregate of an address in the packet; 0: it has none. Global, for the verifier. */
__noinline int bw_address_of(struct __sk_buff *skb, __u32 source)
{
	struct bandwidth_address key = {};
	__u32 *found;
	long failed;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u32 at = sizeof(struct ethhdr) +
			   (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));

		key.family = FAMILY_V4;
		failed = bpf_skb_load_bytes(skb, at, &key.address.word[3], 4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		__u32 at = sizeof(struct ethhdr) + (source ? offsetof(struct ipv6hdr, saddr)
							   : offsetof(struct ipv6hdr, daddr));

		key.family = FAMILY_V6;
		failed = bpf_skb_load_bytes(skb, at, &key.address, 16);
	} else {
		return 0;
	}
	found = failed ? NULL : bpf_map_lookup_elem(&bw_addresses, &key);
	return found ? *found : 0;
}

/* The aggregate of what comes from a pod, or goes to it, by a device of its own on the host. */
static __always_inline __u32 bw_of_pod(struct __sk_buff *skb, const struct bandwidth_pod *pod,
				       const bool source)
{
	__u32 found = 0;

	if (bw_by_address && pod->flags & BANDWIDTH_BY_ADDRESS)
		found = bw_address_of(skb, source);
	return found ?: pod->aggregate;
}

/*
 * The aggregate of what is about to leave: by the mark or, where somebody else has written to
 * that, by the device that it came in by.
 */
static __always_inline __u32 bw_of_leaving(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, ifindex = skb->ingress_ifindex;
	struct bandwidth_pod *pod;

	if (likely(mark >> 16 == BANDWIDTH_MARK))
		return mark & (BANDWIDTH_AGGREGATES - 1);
	if (!ifindex)
		return 0;
	pod = bw_pod(ifindex);
	return pod ? bw_of_pod(skb, pod, true) : 0;
}

#endif
