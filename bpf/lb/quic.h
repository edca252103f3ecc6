/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * QUIC: the backend that a packet's connection id names, whatever addresses it comes from. Nothing is
 * read but what all versions of QUIC have alike (RFC 8999), and of versions 1 and 2 (RFC 9000, 9369)
 * the type of a packet: ids that a client has chosen say nothing.
 *
 * Of a datagram with several packets the first one decides: all have the same id (RFC 9000, 12.2).
 */
#ifndef TOWPATH_LB_QUIC_H
#define TOWPATH_LB_QUIC_H

#include "lb/context.h"
#include "lb/flow_table.h"
#include "lb/known.h"
#include "lb/lookup.h"
#include "lb/maps.h"

enum quic_wire {
	QUIC_LONG_ID = 6,  /* where the id is: behind form, version and the id's length */
	QUIC_SHORT_ID = 1, /* behind the first byte */
	QUIC_LOOKED_AT = 16,
	QUIC_FURTHEST = 1024, /* where UDP's header may begin in a frame */
	QUIC_TYPE_INITIAL = 0,
	QUIC_TYPE_0RTT = 1,
};

static const __u32 QUIC_V2 = 0x6b3343cf;

/* The beginning of a datagram's data, as numbers, and how much there is of these. */
struct quic_data {
	__u64 high, low;
	__u32 length;
};

/* A connection id as far as it is looked at. */
struct quic_id {
	__u64 rest;   /* the 8 bytes behind its first octet */
	__u32 first;  /* that */
	__u32 length; /* in a long header its own; in a short one what there may be of it */
	bool exact;   /* it is its own */
};

/* Where so many bytes are not in front: what there is of them. */
static __always_inline bool quic_copy(struct xdp_md *ctx, __u64 at, __u32 length, __u8 *to)
{
	struct cursor c = cursor_of(ctx);

	/* The verifier wants to see once more where it is. */
	barrier_var(at);
	if (at > QUIC_FURTHEST + sizeof(struct udphdr))
		return false;
	if (xdp_fragments && frame_in_fragments(ctx)) {
		if (length > QUIC_LOOKED_AT)
			length = QUIC_LOOKED_AT;
		/* The same number, of which the verifier knows what it can be. */
		length--;
		barrier_var(length);
		return !bpf_xdp_load_bytes(ctx, at, to, (length & (QUIC_LOOKED_AT - 1)) + 1);
	}
	c.pos += at;
	for (int i = 0; i < QUIC_LOOKED_AT; i++) {
		__u8 *byte = cursor_take(&c, __u8);

		if (!byte)
			break;
		to[i] = *byte;
	}
	return true;
}

/* Reads the data of the datagram at `at`, of a packet that goes to `end`. False: there is none. */
static __always_inline bool quic_read(struct xdp_md *ctx, __u64 at, __u64 end,
				      struct quic_data *data)
{
	struct cursor c = cursor_of(ctx);
	__u64 words[2] = {};
	struct udphdr *udp;
	__u32 length;

	barrier_var(at);
	if (at > QUIC_FURTHEST)
		return false;
	udp = c.pos + at;
	if ((void *)(udp + 1) > c.end)
		return false;
	length = bpf_ntohs(udp->len);
	if (length > end - at)
		length = end - at; /* a first fragment's, or nonsense */
	if (length <= sizeof(*udp))
		return false;
	data->length = length - sizeof(*udp);
	if (likely((void *)(udp + 1) + QUIC_LOOKED_AT <= c.end)) {
		const wide64 *there = (void *)(udp + 1);

		words[0] = there[0];
		words[1] = there[1];
	} else if (!quic_copy(ctx, at + sizeof(*udp), data->length, (__u8 *)words)) {
		return false;
	}
	data->high = bpf_be64_to_cpu(words[0]);
	data->low = bpf_be64_to_cpu(words[1]);
	return true;
}

/* Whether a client has chosen the id in a long header. Of versions that aren't known nobody can say. */
static __always_inline bool quic_is_clients(__u32 version, __u32 type)
{
	if (version == QUIC_V2)
		type--;
	else if (version != 1)
		return false;
	return type == QUIC_TYPE_INITIAL || type == QUIC_TYPE_0RTT;
}

/* QUIC_NAMED if there is an id that may name a server. */
static __always_inline enum quic_outcome quic_take(const struct quic_data *data, struct quic_id *id)
{
	if (!(data->high >> 63)) {
		id->first = (data->high >> 48) & 0xff;
		id->rest = data->high << 16 | data->low >> 48;
		id->length = data->length - QUIC_SHORT_ID;
		id->exact = false;
		return QUIC_NAMED;
	}
	if (data->length < QUIC_LONG_ID)
		return QUIC_UNKNOWN;
	if (quic_is_clients(data->high >> 24, (data->high >> 60) & 3))
		return QUIC_INITIAL;
	id->first = (data->high >> 8) & 0xff;
	id->rest = data->high << 56 | data->low >> 8;
	id->length = (data->high >> 16) & 0xff;
	id->exact = true;
	return id->length <= data->length - QUIC_LONG_ID ? QUIC_NAMED : QUIC_UNKNOWN;
}

/* Whether an id is of a form, so that it has a server's. */
static __always_inline bool quic_is_of(const struct quic_id *id, __u32 form)
{
	__u32 bytes = form & QUIC_FORM_LENGTH, told = id->first & 0x1f;

	if (!bytes)
		return false;
	if (form & QUIC_FORM_KATRAN)
		return id->length >= QUIC_KATRAN;
	if (id->length < 1 + bytes + QUIC_NONCE)
		return false;
	if (!(form & QUIC_FORM_TELLS))
		return true;
	return id->exact ? told + 1 == id->length
			 : told >= bytes + QUIC_NONCE && told + 1 <= id->length;
}

/* The server's id in one of a form. */
static __always_inline __u64 quic_server_of(const struct quic_id *id, __u32 form)
{
	__u32 bytes = form & QUIC_FORM_LENGTH;

	if (form & QUIC_FORM_SHIFTED)
		return (id->first & 0x3f) << 10 | id->rest >> 54;
	return id->rest >> ((64 - 8 * bytes) & 63);
}

/* The outcome in the high half, and the handle of the backend that is named in the low half. */
static __always_inline __u64 quic_said(enum quic_outcome outcome, __u32 handle)
{
	return (__u64)outcome << 32 | handle;
}

/*
 * What the id of a packet says, whose UDP header is at the low half of `where`, and which goes to the
 * high half of it. Changes nothing.
 */
static __always_inline __u64 quic_look(struct xdp_md *ctx, __u32 index, __u64 where)
{
	const volatile __u64 *forms = bpf_map_lookup_elem(&quic_forms, &index);
	enum quic_outcome outcome;
	struct quic_data data;
	struct quic_id id;
	struct backend *backend;
	__u32 form, handle;

	if (!forms || !quic_read(ctx, (__u32)where, where >> 32, &data))
		return quic_said(QUIC_UNKNOWN, 0);
	outcome = quic_take(&data, &id);
	if (outcome != QUIC_NAMED)
		return quic_said(outcome, 0);
	form = *forms >> ((id.first >> 5) * 8);
	if (!quic_is_of(&id, form))
		return quic_said(QUIC_UNKNOWN, 0);
	handle = quic_find(index, quic_server_of(&id, form));
	if (!handle)
		return quic_said(QUIC_UNKNOWN, 0);
	backend = backend_of(handle);
	if (!backend || backend->state == BACKEND_DOWN)
		return quic_said(QUIC_DOWN, 0);
	return quic_said(QUIC_NAMED, backend->handle);
}

/* The same, global: the verifier looks at it once, whatever asks. */
__noinline __u64 quic_ask(struct xdp_md *ctx, __u32 index, __u64 where)
{
	return quic_look(ctx, index, where);
}

static __always_inline void count_quic(__u32 cpu, __u32 service, __u32 outcome)
{
	__u32 at = cpu * services_max + service;
	struct quic_cpu *stats = bpf_map_lookup_elem(&quic_cpus, &at);

	if (!stats)
		return;
	if (outcome == QUIC_NAMED)
		stats->named++;
	else if (outcome == QUIC_INITIAL)
		stats->initial++;
	else if (outcome == QUIC_UNKNOWN)
		stats->unknown++;
	else
		stats->down++;
}

/* The handle of the backend that a packet's id names, 0 if it names none. */
__noinline int quic_backend(struct xdp_md *ctx, __u32 slot, __u32 index)
{
	const __u32 others = PKT_ICMP_ERROR | PKT_FRAG_LATER | PKT_AUTHENTICATED;
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct trace *trace;
	__u32 at, end;
	__u64 said;

	if (!lb || lb->pkt_flags & others || lb->pkt.flow.protocol != IPPROTO_UDP)
		return 0;
	at = lb->pkt.l3_offset + lb->pkt.l4_offset;
	end = lb->pkt.l3_offset + lb->pkt.l3_length;
	said = quic_ask(ctx, index, at | (__u64)end << 32);
	trace = trace_of(lb);
	if (trace)
		trace->quic = said >> 32;
	else
		count_quic(lb->cpu, index, said >> 32);
	return said;
}

/*
 * Notes in the flow table that a flow goes to the backend that an id names, so that what has no id is
 * sent there too, and it is known who has flows. A flow that the table has with another one it keeps:
 * anybody can send an id from anybody's address. Returns whether the flow is a new one.
 */
__noinline int quic_note(__u32 slot, __u32 index, __u32 handle)
{
	struct service *service = bpf_map_lookup_elem(&services, &index);
	struct lb_ctx *lb = lb_ctx_of(slot);
	struct flow_place place;
	struct backend *known;
	struct flow_id id;

	if (!service || !lb)
		return false;
	if (service->flags & SERVICE_NO_FLOW_TABLE)
		return true;
	id = (struct flow_id){ .key = &lb->pkt.flow, .service = index };
	place = flow_place(lb->hash, lb->jiffies);
	known = known_backend(&place, &id, service);
	if (!known && may_be_learnt(lb) && flow_may_learn(lb->cpu, lb->jiffies))
		flow_learn_as(&place, &id, handle);
	if (known && known->handle == handle && !(lb->pkt_flags & PKT_NO_LEARN))
		flow_note(&place, &id);
	return !known;
}

#endif
