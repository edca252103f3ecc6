/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Notes the stamps of packets that come in, to find out whether they survive the way from a pod. */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 probe_types = 0; /* stamps have a type */

/* By IP protocol. */
struct seen_stamp {
	__u64 stamp;
	__u32 type;
	__u32 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct seen_stamp);
} seen_stamps SEC(".maps");

SEC("tc")
int note_stamp(struct __sk_buff *skb)
{
	struct seen_stamp *seen;
	__u8 protocol = 0;
	__u32 key;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, protocol), &protocol, 1))
		return TC_ACT_UNSPEC;
	key = protocol;
	seen = bpf_map_lookup_elem(&seen_stamps, &key);
	if (!seen)
		return TC_ACT_UNSPEC;
	seen->stamp = skb->tstamp;
	seen->type = probe_types ? skb->tstamp_type : 0;
	seen->packets++;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
