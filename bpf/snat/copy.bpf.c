/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Enters translations of another table into one that packets may be using: user space can't
 * take the locks of its sets. Never attached, run as a test over a packet that is an array
 * of struct nat_copy.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "snat/life.h"
#include "snat/sets.h"

/* The best way so far, where the verifier doesn't follow every rank: whoever loads this runs it. */
static volatile struct {
	__u32 rank;
	__u32 way;
} best;

char LICENSE[] SEC("license") = "Dual BSD/GPL";

BTF_KEEP(struct nat_copy);

/* The record in the packet, NULL if there is no such. */
static __always_inline struct nat_copy *record_at(const struct xdp_md *ctx, __u32 at)
{
	struct nat_copy *record = (void *)(long)ctx->data;

	if (at >= NAT_COPIES)
		return NULL;
	record += at;
	barrier_var(record);
	return (void *)(record + 1) > (void *)(long)ctx->data_end ? NULL : record;
}

/* Where an entry belongs. */
struct place {
	struct nat_head *head;
	struct nat_set *set;
	struct nat_lock *lock;
};

static __always_inline bool find_place(struct place *place, __u32 set)
{
	place->head = bpf_map_lookup_elem(&nat_heads, &set);
	place->set = bpf_map_lookup_elem(&nat_flows, &set);
	place->lock = bpf_map_lookup_elem(&nat_locks, &set);
	return place->head && place->set && place->lock;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* Whether both are one flow of a client's, at one address and port of ours. */
static __always_inline bool same_flow(const struct nat_flow *a, const struct nat_flow *b)
{
	return a->client_port == b->client_port && a->port == b->port && a->source == b->source &&
	       a->protocol == b->protocol && a->vip_port == b->vip_port &&
	       same_address(&a->client, &b->client) && same_address(&a->vip, &b->vip);
}

/*
 * Adds what was seen of the flow elsewhere, as far as `marks` says. Its packets may note things
 * at the same time.
 */
static __always_inline void merge_life(struct nat_life *life, struct nat_life more, __u8 marks)
{
	more.client &= marks;
	more.backend &= marks;
	if ((__s16)(more.seen - life->seen) > 0)
		life->seen = more.seen;
	if (more.client & ~life->client)
		life->client |= more.client;
	if (more.backend & ~life->backend)
		life->backend |= more.backend;
}

static __always_inline void write_entry(const struct place *place, __u32 way,
					const struct nat_copy *copy)
{
	struct nat_flow *e = &place->set->way[way];
	__u32 version = nat_next_version(e);

	*(volatile __u64 *)&e->ref = 0;
	barrier();
	e->client = copy->flow.client;
	e->vip = copy->flow.vip;
	e->client_port = copy->flow.client_port;
	e->vip_port = copy->flow.vip_port;
	e->port = copy->flow.port;
	e->backend_port = copy->flow.backend_port;
	e->protocol = copy->flow.protocol;
	e->source = copy->flow.source;
	e->handle = copy->flow.handle;
	e->timeout = copy->flow.timeout;
	e->version = version;
	place->head->life[way] = copy->life;
	((volatile __u8 *)&place->head->forward)[way] = copy->forward_tag;
	((volatile __u8 *)&place->head->reply)[way] = copy->reply_tag;
	barrier();
	*(volatile __u64 *)&e->ref = (__u64)version << 32 | (__u32)copy->flow.ref;
}

/* How dispensable an entry is; age comes on top. 0: it isn't. */
enum copy_rank {
	RANK_UNCONFIRMED = 1 << 16,
	RANK_CLOSING = 2 << 16,
	RANK_EXPIRED = 3 << 16,
	RANK_FREE = 4 << 16,
};

static __always_inline __u32 rank_of(const struct nat_flow *e, struct nat_life life, __u16 now)
{
	__u16 age = nat_age(now, life.seen);

	if (age > nat_allowed(e->protocol, life.client, life.backend, e->timeout))
		return RANK_EXPIRED + age;
	if (e->protocol != IPPROTO_UDP && nat_is_closing(life.client, life.backend))
		return RANK_CLOSING + age;
	return life.client & NAT_ANSWERED ? 0 : RANK_UNCONFIRMED + age;
}

/*
 * The way for the entry: its own, a free one, or that of the most dispensable entry if it
 * is more so than this one. NAT_WAYS: there is none. `known`: it is there. Half an entry is
 * nobody's, as in nat_rank(). An entry that has the port is the only one to go.
 */
static __always_inline __u32 find_way(const struct place *place, const struct nat_copy *copy,
				      __u16 now, bool *known)
{
	best.rank = rank_of(&copy->flow, copy->life, now);
	best.way = NAT_WAYS;
	for (__u32 way = 0; way < NAT_WAYS; way++) {
		const struct nat_flow *e = &place->set->way[way];
		bool whole = e->ref && nat_is_whole(place->head, way);
		__u32 rank = whole ? rank_of(e, place->head->life[way], now) : RANK_FREE;

		if (whole && same_flow(e, &copy->flow)) {
			*known = true;
			return way;
		}
		if (e->ref && (__u32)e->ref == (__u32)copy->flow.ref)
			return rank_of(&copy->flow, copy->life, now) < rank ? way : NAT_WAYS;
		if (rank > best.rank) {
			best.rank = rank;
			best.way = way;
		}
	}
	return best.way;
}

/* Before the entry is there, so that whoever looks for it looks so far. */
static __always_inline bool extend_reach(__u32 home, __u8 tries)
{
	struct nat_head *head = bpf_map_lookup_elem(&nat_heads, &home);
	struct nat_lock *lock = bpf_map_lookup_elem(&nat_locks, &home);

	if (!head || !lock)
		return false;
	bpf_spin_lock(&lock->lock);
	nat_reach(head, tries);
	bpf_spin_unlock(&lock->lock);
	return true;
}

/* Where it was entered. Of what was compared before, Linux 5.10 has forgotten how much it can be. */
static __always_inline __u32 way_of(const struct nat_copy *copy)
{
	__u32 way = copy->way;

	barrier_var(way);
	return way % NAT_WAYS;
}

/* Whether the entry is as it was entered. */
static __always_inline bool is_mine(const struct place *place, const struct nat_copy *copy)
{
	return place->set->way[way_of(copy)].ref == copy->flow.ref;
}

/*
 * Enters one, and says in `copy` what became of it. One that was entered before has the
 * `ref` that it was given: if that is still there it learns what has been seen since, and if
 * not, the program has had its reasons. Of a flow that it has begun itself, FIN and RST that
 * were seen elsewhere may be those of the connection before.
 */
static __always_inline void enter(struct nat_copy *copy)
{
	bool known = false, again = copy->flow.ref >> 32;
	struct place place;
	__u32 way;
	__u16 now;

	copy->result = NAT_COPY_LEFT;
	if (!find_place(&place, copy->set) ||
	    (copy->tries && !extend_reach(copy->home, copy->tries)))
		return;
	now = bpf_jiffies64() >> NAT_SEEN_SHIFT;
	bpf_spin_lock(&place.lock->lock);
	way = find_way(&place, copy, now, &known);
	if (again && !(known && way == copy->way && is_mine(&place, copy)))
		way = NAT_WAYS;
	if (way < NAT_WAYS) {
		if (!known)
			write_entry(&place, way, copy);
		else
			merge_life(&place.head->life[way], copy->life, again ? ~0 : NAT_ANSWERED);
		copy->flow.ref = place.set->way[way].ref;
		copy->way = way;
		copy->result = known ? NAT_COPY_KNOWN : NAT_COPY_MADE;
	}
	bpf_spin_unlock(&place.lock->lock);
}

/* Gives up the entry that has the record's `ref`, if it is still there. */
static __always_inline void leave(struct nat_copy *copy)
{
	struct place place;

	copy->result = NAT_COPY_LEFT;
	if (!find_place(&place, copy->set) || copy->way >= NAT_WAYS)
		return;
	bpf_spin_lock(&place.lock->lock);
	if (is_mine(&place, copy)) {
		nat_clear(place.head, &place.set->way[way_of(copy)], way_of(copy));
		copy->result = NAT_COPY_GONE;
	}
	bpf_spin_unlock(&place.lock->lock);
}

/* Global, so that the verifier looks at them once, and not for each record. */
__noinline int enter_at(struct xdp_md *ctx, __u32 at)
{
	struct nat_copy *record = record_at(ctx, at), copy;

	if (!record)
		return 0;
	copy = *record;
	enter(&copy);
	record = record_at(ctx, at);
	if (record)
		*record = copy;
	return 0;
}

__noinline int leave_at(struct xdp_md *ctx, __u32 at)
{
	struct nat_copy *record = record_at(ctx, at), copy;

	if (!record)
		return 0;
	copy = *record;
	leave(&copy);
	record = record_at(ctx, at);
	if (record)
		*record = copy;
	return 0;
}

SEC("xdp")
int nat_enter(struct xdp_md *ctx)
{
	for (__u32 at = 0; at < NAT_COPIES; at++)
		enter_at(ctx, at);
	return XDP_PASS;
}

SEC("xdp")
int nat_leave(struct xdp_md *ctx)
{
	for (__u32 at = 0; at < NAT_COPIES; at++)
		leave_at(ctx, at);
	return XDP_PASS;
}
