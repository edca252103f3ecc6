/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Wildcard tables in programs of every kind, and two of them in one: included as
 * other people's programs do, and with nothing else of Towpath.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include <towpath/wildcard.h>

WILDCARD_TABLE(acl, 100);
WILDCARD_TABLE(marks, 5);

/* Everything that a packet has beside addresses is left 0. */
static __always_inline int parse(void *data, void *end, struct wildcard_key *key)
{
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + sizeof(*ethernet);

	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP))
		return -1;
	key->family = WILDCARD_IPV4;
	key->saddr[3] = ip->saddr;
	key->daddr[3] = ip->daddr;
	key->protocol = ip->protocol;
	return 0;
}

SEC("xdp")
int both_tables(struct xdp_md *ctx)
{
	struct wildcard_key key = {};
	__u64 verdict = 0, mark = 0;

	if (parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &key))
		return XDP_ABORTED;
	if (wildcard_lookup(acl, &key, &verdict) && verdict == XDP_DROP)
		return XDP_DROP;
	return wildcard_lookup(marks, &key, &mark) ? XDP_TX : XDP_PASS;
}

SEC("tc")
int one_table(struct __sk_buff *skb)
{
	struct wildcard_key key = {};
	__u64 verdict = 0;

	if (parse((void *)(long)skb->data, (void *)(long)skb->data_end, &key))
		return TC_ACT_UNSPEC;
	return wildcard_lookup(acl, &key, &verdict) ? (int)verdict : TC_ACT_OK;
}

/* A connection that a rule's value forbids isn't made. */
SEC("cgroup/connect4")
int allowed(struct bpf_sock_addr *ctx)
{
	struct wildcard_key key = {
		.daddr = { 0, 0, 0, ctx->user_ip4 },
		.dport = ctx->user_port,
		.protocol = ctx->protocol,
		.family = WILDCARD_IPV4,
	};
	__u64 verdict = 0;

	return !(wildcard_lookup(acl, &key, &verdict) && verdict == XDP_DROP);
}

char _license[] SEC("license") = "GPL";
