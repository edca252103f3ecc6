/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The world around a node that forwards, for `towpath bench forward`: clients on one
 * side of it, backends on the other.
 *
 *   offer     makes packets of many flows and sends each out of the clients' device.
 *             Never attached: BPF_PROG_TEST_RUN runs it on live frames, which the
 *             kernel then sends where the program says.
 *   clients   on the clients' device, counts what backends answered.
 *   backends  on the backends' device: looks whether each packet is as it should be
 *             after the node, counts it for its backend, then drops or answers it.
 *   redirect  on the node, the least that XDP can do: another frame, the other device.
 *   redirect_skb  the same by tc, which has packets of the kernel's.
 *
 * Every backend has a link-layer address of its own, whose last two bytes are its
 * number: a packet's frame says which one it is for, whatever the way it was forwarded.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/btf.h"

enum bench_limits {
	BENCH_BACKENDS = 1024,
	BENCH_GLANCES = 1024, /* at the clock, between two packets */
	BENCH_CLIENTS = 256,  /* flows from one port; they differ in the last byte of the address */
};
BTF_KEEP(enum bench_limits);

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__u32 mark; /* the first bytes of what it carries */
} __attribute__((packed));

/*
 * What crosses here is no other program's business: hence not in abi/. These two are
 * the whole of .bss. User space writes `bench` and nobody else while packets go.
 */
struct bench {
	/* Flow 0's headers, how many flows there are and packets in a run. */
	__u8 first[42];
	__u16 answers; /* 1: backends answer */
	__u32 flows;
	__u32 clients_ifindex;
	__u32 backends_ifindex;
	__u32 mark; /* of a packet behind all others, which isn't counted, or 0 */
	__u32 gap;  /* nanoseconds between packets, 0: as many as can be */
	__u64 packets;

	/* Not 0: flows go to so many backends in turn, each from a port that is its own there. */
	__u32 remotes;
	__u32 first_flow;

	/* What arrives at backend n: in the packet, or in the tunnel's header around it. */
	__u32 backends;
	__u32 daddr;	  /* of backend 0, host order */
	__u32 daddr_step; /* 1: each has its own; 0: all have the VIP */
	__be32 saddr;	  /* the node's, where saddr_mask is not 0 */
	__be32 saddr_mask;
	__u32 protocol;	   /* IPPROTO_UDP, or IPPROTO_IPIP in a tunnel */
	__u32 out_ifindex; /* for `redirect`: where backend 0 is */
	__be32 vip;
	__be16 port;
	__u8 out_mac[6];
} bench;

/* The clients' CPU writes this with every packet: not in a line that the others read. */
struct progress {
	__u64 sent;
	__u64 began; /* nanoseconds, the first packet */
	__u64 ended; /* the last one */
	__u32 flow;
	__u32 _pad;
} progress __attribute__((aligned(128)));

struct arrivals {
	__u64 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BENCH_BACKENDS);
	__type(key, __u32);
	__type(value, struct arrivals);
} arrived SEC(".maps");

struct strays {
	__u64 wrong;	/* arrived at a backend, but not as it should be */
	__u64 answered; /* arrived at a client from the VIP */
	__u64 unknown;	/* arrived at a client from elsewhere */
	__u64 arrived_mark;
	__u64 answered_mark;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct strays);
} strays SEC(".maps");

/* RFC 1624, of so much more in the low half of an address. */
static __always_inline __sum16 checksum_plus(__sum16 check, __u32 more)
{
	__u32 sum = (__u16)~bpf_ntohs(check) + more;

	return bpf_htons(~((sum & 0xffff) + (sum >> 16)));
}

static __always_inline void wait(void)
{
	__u64 began = bpf_ktime_get_ns();
	int i;

	for (i = 0; i < BENCH_GLANCES; i++)
		if (bpf_ktime_get_ns() - began >= bench.gap)
			return;
}

static __always_inline void add_to_port(struct headers *packet, __u32 more)
{
	packet->udp.source = bpf_htons(bpf_ntohs(packet->udp.source) + more);
}

/* Of a flow from one of the clients' addresses, to whom all packets go. */
static __always_inline void write_client(struct headers *packet, __u32 flow)
{
	__u32 client = flow % BENCH_CLIENTS;

	packet->ip.saddr += bpf_htonl(client);
	packet->ip.check = checksum_plus(packet->ip.check, client);
	add_to_port(packet, flow / BENCH_CLIENTS);
}

static __always_inline void write_remote(struct headers *packet, __u32 flow)
{
	__u32 remote = flow % bench.remotes;

	packet->ip.daddr += bpf_htonl(remote);
	packet->ip.check = checksum_plus(packet->ip.check, remote);
	add_to_port(packet, flow / bench.remotes);
}

SEC("xdp")
int offer(struct xdp_md *ctx)
{
	struct headers *packet = (void *)(long)ctx->data;
	__u32 flow = progress.flow;

	if ((void *)(packet + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (bench.gap)
		wait();
	if (!progress.sent++)
		progress.began = bpf_ktime_get_ns();
	if (progress.sent == bench.packets)
		progress.ended = bpf_ktime_get_ns();
	progress.flow = flow + 1 < bench.flows ? flow + 1 : 0;
	__builtin_memcpy(packet, bench.first, sizeof(bench.first));
	packet->mark = bench.mark;
	if (bench.remotes)
		write_remote(packet, bench.first_flow + flow);
	else
		write_client(packet, flow);
	return bpf_redirect(bench.clients_ifindex, 0);
}

static __always_inline struct strays *count_strays(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&strays, &zero);
}

SEC("xdp")
int clients(struct xdp_md *ctx)
{
	struct headers *packet = (void *)(long)ctx->data;
	struct strays *count = count_strays();

	if (!count || (void *)(packet + 1) > (void *)(long)ctx->data_end ||
	    packet->eth.h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (packet->mark)
		count->answered_mark = packet->mark;
	else if (packet->ip.saddr != bench.vip || packet->udp.source != bench.port)
		count->unknown++;
	else
		count->answered++;
	return XDP_DROP;
}

static __always_inline int is_right(const struct headers *packet, __u32 backend,
				    const struct headers *inner)
{
	return packet->ip.daddr == bpf_htonl(bench.daddr + backend * bench.daddr_step) &&
	       !((packet->ip.saddr ^ bench.saddr) & bench.saddr_mask) &&
	       packet->ip.protocol == bench.protocol && inner->udp.dest == bench.port &&
	       (inner == packet || inner->ip.daddr == bench.vip);
}

static __always_inline void count_other(__u32 mark)
{
	struct strays *stray = count_strays();

	if (stray && mark)
		stray->arrived_mark = mark;
	else if (stray)
		stray->wrong++;
}

/* Of a packet in which nothing is summed up but the IP header: no sum changes. */
static __always_inline int answer(struct headers *packet)
{
	struct headers was = *packet;

	__builtin_memcpy(packet->eth.h_dest, was.eth.h_source, ETH_ALEN);
	__builtin_memcpy(packet->eth.h_source, was.eth.h_dest, ETH_ALEN);
	packet->ip.saddr = was.ip.daddr;
	packet->ip.daddr = was.ip.saddr;
	packet->udp.source = was.udp.dest;
	packet->udp.dest = was.udp.source;
	/* XDP_TX wakes a veth up only that has an XDP program, and the kernel's own ways have none. */
	return bpf_redirect(bench.backends_ifindex, 0);
}

SEC("xdp")
int backends(struct xdp_md *ctx)
{
	struct headers *packet = (void *)(long)ctx->data, *inner = packet;
	void *end = (void *)(long)ctx->data_end;
	struct arrivals *count;
	__u32 backend;

	if ((void *)(packet + 1) > end || packet->eth.h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (bench.protocol == IPPROTO_IPIP)
		inner = (void *)packet + sizeof(struct iphdr);
	if ((void *)(inner + 1) > end)
		return XDP_PASS;
	backend = packet->eth.h_dest[4] << 8 | packet->eth.h_dest[5];
	count = bpf_map_lookup_elem(&arrived, &backend);
	if (count && backend < bench.backends && !inner->mark && is_right(packet, backend, inner))
		count->packets++;
	else
		count_other(inner->mark);
	return bench.answers ? answer(packet) : XDP_DROP;
}

/* -1: not IPv4. */
static __always_inline int address_frame(struct ethhdr *eth, void *end)
{
	if ((void *)(eth + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return -1;
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, bench.out_mac, ETH_ALEN);
	return 0;
}

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	if (address_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_PASS;
	return bpf_redirect(bench.out_ifindex, 0);
}

SEC("tc")
int redirect_skb(struct __sk_buff *skb)
{
	if (address_frame((void *)(long)skb->data, (void *)(long)skb->data_end))
		return TC_ACT_OK;
	return bpf_redirect(bench.out_ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
