/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts UDP packets over IPv4 that come in on a device, by their destination port. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct ports {
	__u16 first;
	__u16 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ports);
} wanted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counted SEC(".maps");

static __always_inline int udp_port(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
	    ip->protocol != IPPROTO_UDP)
		return -1;
	return bpf_ntohs(udp->dest);
}

/* Whatever it is, the packet goes on as if nobody had looked. */
SEC("tc")
int packets_count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct ports *ports = bpf_map_lookup_elem(&wanted, &zero);
	__u64 *packets = bpf_map_lookup_elem(&counted, &zero);
	int port = udp_port(skb);

	if (ports && packets && port >= ports->first && port <= ports->last)
		*packets += 1;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
