/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The recorder: keeps a frame as it came in, and when it is known what became of it writes
 * that and the frame that was sent on into the rings of the captures that want it.
 */
#ifndef TOWPATH_RECORDER_RECORD_H
#define TOWPATH_RECORDER_RECORD_H

#include "net/hash.h"
#include "net/parse.h"
#include "net/pull.h"
#include "abi/recorder.h"
#include "wildcard/wildcard.h"
#include "lb/context.h"

WILDCARD_TABLE(capture, 64);

/* All captures share what follows; only the rules above are each one's own. */

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, RECORD_CAPTURES);
	__type(key, __u32);
	__type(value, __u32);
} record_chain SEC(".maps"); /* by slot: the program of the capture that is asked next */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, RECORD_CAPTURES);
	__type(key, __u32);
	__type(value, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_RINGBUF);
			__uint(max_entries, 1 << 16);
		});
} record_rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RECORD_LOSSES);
	__type(key, struct record_loss);
	__type(value, __u64);
} record_losses SEC(".maps");

ARRAY_MAP(record_slots, struct record_slot);
ARRAY_MAP(record_cpus, struct record_cpu);
ARRAY_MAP(record_frames, struct record_frame); /* two for each CPU, by direction */

/* Set before loading. */
const volatile __u32 record_slot = 0;	      /* this capture's */
const volatile __u32 record_match = 0;	      /* enum record_match */
const volatile __u32 record_sample = ~0U;     /* wanted is whoever draws no higher number */
const volatile __u32 record_load_helper = 0;  /* bpf_xdp_load_bytes, since 5.18 */
const volatile __u32 record_rule_devices = 0; /* rules name devices */

static __always_inline struct record_cpu *record_cpu(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&record_cpus, &cpu);
}

static __always_inline struct record_frame *record_frame(__u32 direction)
{
	__u32 at = bpf_get_smp_processor_id() * 2 + direction;

	return bpf_map_lookup_elem(&record_frames, &at);
}

/* ---- Whether somebody reads ------------------------------------------------------ */

static __always_inline bool record_alive(struct record_cpu *cpu)
{
	__u32 at = record_slot, now = bpf_jiffies64();
	struct record_slot *slot = bpf_map_lookup_elem(&record_slots, &at);
	struct record_seen *seen = &cpu->seen_beat[record_slot % RECORD_CAPTURES];
	__u32 beat = slot ? *(volatile __u32 *)&slot->beat : 0;

	if (seen->beat != beat) {
		seen->beat = beat;
		seen->jiffies = now;
	}
	return now - seen->jiffies < RECORD_LEASE;
}

enum record_headers {
	RECORD_TAGS = 2,
};

/* ---- What the packet is ---------------------------------------------------------- */

/* Of SCTP as well. Only the first fragment of a packet has ports. */
static __always_inline void record_ports(struct cursor *c, struct flow_key *flow)
{
	struct ports *ports;

	if (flow->protocol != IPPROTO_TCP && flow->protocol != IPPROTO_UDP &&
	    flow->protocol != IPPROTO_SCTP)
		return;
	ports = cursor_take(c, struct ports);
	if (!ports)
		return;
	flow->sport = ports->source;
	flow->dport = ports->dest;
}

/*
 * Behind two tags at most, of whatever kind: the load balancer leaves such frames alone, but who
 * captures wants to see them. Returns the EtherType; `vlan` is the outer tag's.
 */
static __always_inline __be16 record_ethernet(struct cursor *c, __be16 *vlan)
{
	struct ethhdr *eth = cursor_take(c, struct ethhdr);
	struct vlan_tag *tag;
	__be16 ethertype;

	*vlan = 0;
	if (!eth)
		return 0;
	ethertype = eth->h_proto;
#pragma unroll
	for (int i = 0; i < RECORD_TAGS && is_tag(ethertype); i++) {
		tag = cursor_take(c, struct vlan_tag);
		if (!tag)
			return 0;
		if (!i)
			*vlan = tag->tci;
		ethertype = tag->ethertype;
	}
	return ethertype;
}

/* Past an authentication header (RFC 4302). False: it makes no sense. */
static __always_inline bool record_authentication(struct cursor *c, struct record_cpu *cpu)
{
	struct ip_auth_hdr *header = cursor_take(c, struct ip_auth_hdr);

	cpu->authenticated = true;
	if (!header || !header->hdrlen)
		return false;
	cpu->flow.protocol = header->nexthdr;
	c->pos = (void *)header + (header->hdrlen + 2) * 4;
	return true;
}

static __always_inline void record_ipv4(struct cursor *c, struct record_cpu *cpu)
{
	struct flow_key *flow = &cpu->flow;
	struct iphdr *ip = cursor_take(c, struct iphdr);

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return;
	flow->family = FAMILY_V4;
	flow->protocol = ip->protocol;
	flow->saddr.word[3] = ip->saddr;
	flow->daddr.word[3] = ip->daddr;
	if (ip->frag_off & bpf_htons(0x1fff))
		return;
	c->pos = (void *)ip + ip->ihl * 4;
	if (flow->protocol != IPPROTO_AH || record_authentication(c, cpu))
		record_ports(c, flow);
}

static __always_inline void record_ipv6(struct cursor *c, struct record_cpu *cpu)
{
	struct flow_key *flow = &cpu->flow;
	struct ipv6hdr *ip = cursor_take(c, struct ipv6hdr);
	struct ipv6_extension *ext;
	struct ipv6_fragment *frag;
	__u8 next;

	if (!ip || ip->version != 6)
		return;
	flow->family = FAMILY_V6;
	__builtin_memcpy(&flow->saddr, &ip->saddr, 16);
	__builtin_memcpy(&flow->daddr, &ip->daddr, 16);
	next = ip->nexthdr;

#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		flow->protocol = next;
		if (next == IPPROTO_FRAGMENT) {
			frag = cursor_take(c, struct ipv6_fragment);
			if (!frag)
				return;
			flow->protocol = next = frag->nexthdr;
			if (frag->offset & bpf_htons(0xfff8))
				return;
		} else if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS ||
			   next == IPPROTO_ROUTING) {
			ext = cursor_take(c, struct ipv6_extension);
			if (!ext)
				return;
			next = ext->nexthdr;
			c->pos = (void *)ext + (ext->length + 1) * 8;
		} else if (next == IPPROTO_AH) {
			if (!record_authentication(c, cpu))
				return;
			next = flow->protocol;
		} else {
			break;
		}
	}
	flow->protocol = next;
	record_ports(c, flow);
}

/*
 * Fills the 5-tuple as far as the frame has it. Unlike the load balancer's own parser this one
 * is content with less: what is nonsense, or no service's, is what one wants to see.
 */
__noinline int record_parse(struct xdp_md *ctx)
{
	struct record_cpu *cpu = record_cpu();
	struct cursor c = cursor_of(ctx);
	__be16 ethertype;

	if (!cpu)
		return 0;
	ethertype = record_ethernet(&c, &cpu->vlan);
	cpu->authenticated = false;
	__builtin_memset(&cpu->flow, 0, sizeof(cpu->flow));
	if (ethertype == bpf_htons(ETH_P_IP))
		record_ipv4(&c, cpu);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		record_ipv6(&c, cpu);
	return 0;
}

/* ---- Whether it is wanted -------------------------------------------------------- */

static __always_inline bool record_rules_match(struct xdp_md *ctx, const struct record_cpu *cpu)
{
	const struct flow_key *flow = &cpu->flow;
	struct wildcard_key key = {
		.sport = flow->sport,
		.dport = flow->dport,
		.protocol = flow->protocol,
		.family = flow->family,
		.vlan = bpf_ntohs(cpu->vlan) & VLAN_VID,
		.ifindex = record_rule_devices ? ctx->ingress_ifindex : 0,
	};
	__u64 value;

	__builtin_memcpy(key.saddr, &flow->saddr, 16);
	__builtin_memcpy(key.daddr, &flow->daddr, 16);
	/* One look-up in a loop: for two, the compiler keeps too much on a stack that is deep below. */
#pragma clang loop unroll(disable)
	for (__u32 tries = 0; tries < 2; tries++) {
		if (wildcard_lookup(capture, &key, &value))
			return true;
		if (likely(!cpu->authenticated))
			return false;
		/* It is a packet of either protocol. */
		key.protocol = IPPROTO_AH;
		key.sport = key.dport = 0;
	}
	return false;
}

/*
 * Whether an expression matches the packet: user space puts its instructions in the place of
 * these before it loads the program. So many, all of which can be reached, but are not.
 */
#define RECORD_EXPRESSION_ROOM "4090"

__noinline int record_expression(struct xdp_md *ctx)
{
	int result;

	asm volatile("%0 = 0\n"
		     ".rept " RECORD_EXPRESSION_ROOM "\n"
		     "%0 |= 0\n"
		     ".endr\n"
		     : "=r"(result)
		     : "r"(ctx));
	return result;
}

static __always_inline bool record_wanted(struct xdp_md *ctx, struct record_cpu *cpu)
{
	struct record_count *count = &cpu->counts[record_slot % RECORD_CAPTURES];

	count->seen++;
	if (record_match & RECORD_RULES && !record_rules_match(ctx, cpu))
		return false;
	if (record_match & RECORD_EXPRESSION && !record_expression(ctx))
		return false;
	count->matched++;
	return record_sample == ~0U || bpf_get_prandom_u32() <= record_sample;
}

/* ---- Frames ---------------------------------------------------------------------- */

/* Copies as much of the frame as the captures want; returns how much. */
static __always_inline __u32 record_copy(struct xdp_md *ctx, struct record_frame *frame,
					 __u32 snaplen)
{
	__u64 length = frame_length(ctx), size = length;

	if (size > snaplen)
		size = snaplen;
	if (size > RECORD_MAX_SNAPLEN)
		size = RECORD_MAX_SNAPLEN;
	if (!size)
		return 0;
	/* From 1 to 64 KiB, also to verifiers that learn nothing of a comparison with 0. */
	size--;
	asm volatile("" : "+r"(size));
	size = (size & RECORD_MAX_SNAPLEN) + 1;
	frame->head.length = length;
	if (record_load_helper) {
		if (bpf_xdp_load_bytes(ctx, 0, frame->data, size))
			return 0;
	} else if (bpf_probe_read_kernel(frame->data, size, (void *)(long)ctx->data)) {
		return 0;
	}
	return size;
}

/* For a packet that this capture wants: keeps it as it is now, and the time. */
static __always_inline void record_take(struct xdp_md *ctx, struct record_cpu *cpu)
{
	struct record_frame *frame = record_frame(RECORD_IN);
	__u32 at = record_slot;
	struct record_slot *slot = bpf_map_lookup_elem(&record_slots, &at);

	if (!slot || !frame)
		return;
	if (!cpu->chosen) {
		frame->head.time = bpf_ktime_get_ns();
		cpu->snaplen = 0;
		cpu->directions = 0;
	}
	cpu->chosen |= 1U << record_slot;
	cpu->directions |= slot->directions;
	if (cpu->snaplen >= slot->snaplen)
		return;
	cpu->snaplen = slot->snaplen;
	cpu->captured[RECORD_IN] = record_copy(ctx, frame, slot->snaplen);
}

/*
 * Adds without asking what was there before. Relaxed, or clang 20 and newer fetch it all the same,
 * which kernels before 5.12 can't.
 */
static __always_inline void record_add_one(__u64 *to)
{
	__atomic_fetch_add(to, 1, __ATOMIC_RELAXED);
}

static __always_inline void record_lost(const struct record *head, __u32 slot)
{
	struct record_loss key = {
		.slot = slot,
		.ifindex = head->ifindex,
		.direction = head->direction,
	};
	__u64 *lost = bpf_map_lookup_elem(&record_losses, &key), one = 1;

	if (lost)
		record_add_one(lost);
	else if (bpf_map_update_elem(&record_losses, &key, &one, BPF_NOEXIST))
		/* Another CPU was first. */
		if ((lost = bpf_map_lookup_elem(&record_losses, &key)))
			record_add_one(lost);
}

/*
 * Writes this CPU's frame of a direction (with RECORD_COPY or without) into the ring of one
 * capture, if that wants it. A capture for which there is no room doesn't want the packet's
 * other frame either.
 *
 * Global, and told numbers only, so that the verifier looks at it once: older ones hold what
 * differs from turn to turn of a loop against each other, all of it.
 */
__noinline int record_write_one(__u32 at, __u32 direction)
{
	struct record_frame *frame = record_frame(direction & 1);
	struct record_slot *slot = bpf_map_lookup_elem(&record_slots, &at);
	struct record_cpu *cpu = record_cpu();
	__u64 size;
	void *ring;

	if (!frame || !slot || !cpu || !(cpu->chosen >> (at & 31) & 1) ||
	    !(slot->directions >> (direction & (RECORD_OUT | RECORD_COPY)) & 1))
		return 0;
	ring = bpf_map_lookup_elem(&record_rings, &at);
	if (!ring)
		return 0;
	size = cpu->captured[direction & 1];
	if (size > slot->snaplen)
		size = slot->snaplen;
	asm volatile("" : "+r"(size));
	size &= RECORD_MAX_SNAPLEN;
	frame->head.captured = size;
	if (bpf_ringbuf_output(ring, frame, sizeof(frame->head) + size, BPF_RB_NO_WAKEUP)) {
		record_lost(&frame->head, at);
		cpu->chosen &= ~(1U << (at & 31));
	}
	return 0;
}

/* Few captures go on at once: what the others would be asked costs more than writing does. */
static __always_inline void record_write(struct record_cpu *cpu, __u32 direction)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RECORD_CAPTURES; i++)
		if (cpu->chosen >> i & 1)
			record_write_one(i, direction);
}

/* ---- What became of it ----------------------------------------------------------- */

static __always_inline void record_outcome(struct record *head, const struct record_cpu *cpu,
					   const struct lb_ctx *lb, __u32 verdict, __u32 action)
{
	head->packet = (__u64)lb->cpu << RECORD_CPU_SHIFT | cpu->packets;
	head->flow = hash_flow(&cpu->flow, hash_seed);
	head->service = lb->service;
	head->handle = lb->service ? lb->handle : 0;
	head->verdict = verdict;
	head->action = action;
}

/* Whether the packet, or an answer in its place, goes out. */
static __always_inline bool record_is_sent(__u32 verdict)
{
	return verdict <= VERDICT_HANDOFF || verdict == VERDICT_TX_TOO_BIG ||
	       verdict == VERDICT_TX_ECHO;
}

/*
 * Whether what is sent on is the same packet still: whoever reads both takes the second one for
 * sent again. Translated ones are another conversation's, and answers are new.
 */
static __always_inline bool record_is_copy(const struct lb_ctx *lb, __u32 verdict)
{
	__u32 id = lb->service;
	struct service *service;

	if (verdict > VERDICT_HANDOFF || !id)
		return false;
	service = bpf_map_lookup_elem(&services, &id);
	return service && !(service->flags & SERVICE_SNAT);
}

/*
 * For a packet that has been captured: `verdict` has been carried out, but not left yet. This
 * and the function below are global, so that the verifier looks at them, and at the load
 * balancer between them, once each.
 */
__noinline int record_end(struct xdp_md *ctx, __u32 verdict, __u32 action)
{
	struct record_frame *in = record_frame(RECORD_IN), *out = record_frame(RECORD_OUT);
	struct record_cpu *cpu = record_cpu();
	struct lb_ctx *lb = lb_ctx_of(bpf_get_smp_processor_id() * 2);
	__u32 sent = RECORD_OUT;

	if (!in || !out || !cpu || !lb)
		return 0;
	cpu->packets++;
	record_outcome(&in->head, cpu, lb, verdict, action);
	in->head.ifindex = lb->rx_ifindex;
	in->head.direction = RECORD_IN;
	record_write(cpu, RECORD_IN);
	if (!cpu->chosen || !record_is_sent(verdict))
		goto out;
	if (record_is_copy(lb, verdict))
		sent |= RECORD_COPY;
	/* Nothing is kept of a frame that nobody wants. */
	if (cpu->directions >> sent & 1) {
		out->head = in->head;
		out->head.time = bpf_ktime_get_ns();
		out->head.ifindex = verdict <= VERDICT_HANDOFF ? lb->tx_ifindex : lb->rx_ifindex;
		out->head.direction = RECORD_OUT;
		cpu->captured[RECORD_OUT] = record_copy(ctx, out, cpu->snaplen);
		record_write(cpu, sent);
	}
out:
	cpu->chosen = 0;
	return 0;
}

/* For a packet that has come in: keeps it if this capture wants it. */
__noinline int record_begin(struct xdp_md *ctx)
{
	struct record_cpu *cpu = record_cpu();

	if (!cpu || !record_alive(cpu))
		return 0;
	if (xdp_fragments && frame_in_fragments(ctx))
		pull(ctx, PULL_HEADERS);
	record_parse(ctx);
	if (record_wanted(ctx, cpu))
		record_take(ctx, cpu);
	return 0;
}

#endif
