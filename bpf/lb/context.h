/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet on its way through the load balancer. */
#ifndef TOWPATH_LB_CONTEXT_H
#define TOWPATH_LB_CONTEXT_H

#include "lb/maps.h"
#include "net/address.h"
#include "net/exthdr.h"
#include "net/parse.h"
#include "lb/trace.h"

#define PARSE_IS(name)                                                \
	_Static_assert((int)PARSE_##name == (int)VERDICT_PASS_##name, \
		       "what ends a parse has its verdict's number")
PARSE_IS(NOT_IP);
PARSE_IS(PROTOCOL);
PARSE_IS(FRAGMENT);
PARSE_IS(MALFORMED);
PARSE_IS(QINQ);
#undef PARSE_IS

/* How a packet is other than whole, of TCP or UDP, and live: a set of these. */
enum pkt_flags {
	PKT_NO_LEARN = 1 << 0,	    /* the flow table learns nothing from it */
	PKT_FRAG_FIRST = 1 << 1,    /* the first fragment of a packet */
	PKT_FRAG_LATER = 1 << 2,    /* one that follows it */
	PKT_ICMP_ERROR = 1 << 3,    /* an ICMP error: the flow is the quoted packet's */
	PKT_AUTHENTICATED = 1 << 4, /* behind an authentication header: not to be translated */
	PKT_FRAGMENT = PKT_FRAG_FIRST | PKT_FRAG_LATER,
	/* How it leaves, where that isn't what its verdict says: set at the end of its way. */
	PKT_REDIRECTED = 1 << 8, /* by XDP_REDIRECT */
	PKT_PASSED = 1 << 9,	 /* by the kernel */
};

/*
 * It lies in a map rather than on the stack: what is read from there is any number
 * to the verifier, which therefore looks at the rest of the program once, and not
 * again for every way through the parser. And a global function, which takes no
 * pointers before 5.12, finds it by its slot.
 */
struct lb_ctx {
	struct packet pkt;
	struct vip_key prefix; /* that is being looked for */
	__u32 slot;
	__u32 cpu;
	__u32 rx_ifindex;
	__u32 traced;	 /* this packet is a trace's */
	__u32 pkt_flags; /* enum pkt_flags, 0 for almost all */
	__u64 jiffies;
	__u64 hash;
	__u32 service;	  /* these three only for the recorder: 0 = not a VIP's */
	__u32 handle;	  /* of the backend, 0 = none */
	__u32 tx_ifindex; /* of a packet that is sent on */
	__u32 _reserved;
	struct hdr_state hdr; /* on the slow path: where headers are being read */
	__u32 first_handle;   /* of the backend that the first fragment went to */
	__u32 rank;	      /* of the fragment's entry that is to be replaced */
	__u32 checksum_at;    /* as the first fragment has left it */
	__u32 _reserved2;
	struct next_hop fresh; /* as the kernel has just told it */
	__u32 exact;	       /* what service_exact() has said of a packet that is handed over */
	__u32 _reserved3;
};

/* Whether this is the program that records: the other one, which says nothing here, stores nothing. */
static const bool recording;

#define RECORD(lb, field, value)               \
	do {                                   \
		if (recording)                 \
			(lb)->field = (value); \
	} while (0)

/*
 * Two for each possible CPU. Traces have one of their own, since before 6.9 a
 * test run may be interrupted by packets of the same CPU.
 */
ARRAY_MAP(contexts, struct lb_ctx);

static __always_inline struct lb_ctx *lb_ctx_of(__u32 slot)
{
	return bpf_map_lookup_elem(&contexts, &slot);
}

/* A packet that came in is in front of parser and balance(), which fill the rest. */
static __always_inline void lb_ctx_fill(struct lb_ctx *lb, __u32 slot, __u32 cpu, __u32 ifindex,
					__u32 traced)
{
	lb->slot = slot;
	lb->cpu = cpu;
	lb->rx_ifindex = ifindex;
	lb->traced = traced;
	lb->pkt_flags = traced ? PKT_NO_LEARN : 0;
}

/* This CPU's, for a packet that came in. */
static __always_inline struct lb_ctx *lb_ctx_begin(struct xdp_md *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id(), ifindex = ctx->ingress_ifindex;
	__u32 traced = trace_requested(ctx, &ifindex);
	__u32 slot = cpu * 2 + traced;
	struct lb_ctx *lb = lb_ctx_of(slot);

	if (lb)
		lb_ctx_fill(lb, slot, cpu, ifindex, traced);
	return lb;
}

static __always_inline struct trace *trace_of(const struct lb_ctx *lb)
{
	__u32 zero = 0;

	return unlikely(lb->traced) ? bpf_map_lookup_elem(&traces, &zero) : NULL;
}

#define TRACE(lb, field, value)                      \
	do {                                         \
		struct trace *_trace = trace_of(lb); \
		if (_trace)                          \
			_trace->field = (value);     \
	} while (0)

/* Whether anything is to be remembered by this packet. A reset begins nothing. */
static __always_inline bool may_be_learnt(const struct lb_ctx *lb)
{
	return !(lb->pkt_flags & PKT_NO_LEARN) && likely(!(lb->pkt.tcp_flags & TCP_RST));
}

#define TRACE_FLAG(lb, flag)                         \
	do {                                         \
		struct trace *_trace = trace_of(lb); \
		if (_trace)                          \
			_trace->flags |= (flag);     \
	} while (0)

/* Decisions that both a trace and a record tell. */
static __always_inline void note_service(struct lb_ctx *lb, __u32 service)
{
	struct trace *trace = trace_of(lb);

	if (trace) {
		trace->flags |= TRACE_VIP;
		trace->service = service;
	}
	RECORD(lb, service, service);
}

static __always_inline void note_backend(struct lb_ctx *lb, const struct backend *backend)
{
	struct trace *trace = trace_of(lb);

	if (trace) {
		trace->handle = backend->handle;
		trace->outer_daddr = backend->addr;
	}
	RECORD(lb, handle, backend->handle);
}

#endif
