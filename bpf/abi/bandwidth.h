/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Bandwidth of pods. An aggregate is what has a limit: a pod, or a group of pods. Its number is
 * the index of its rows in the tables; 0 is nobody's.
 *
 * Times are nanoseconds of CLOCK_MONOTONIC. An aggregate's `next` is when all that it was charged
 * for will have left at its rate. A flow has a time of its own within the aggregate, which runs as
 * many times slower as there are flows that are ahead of the present: see struct bandwidth_state.
 */
#ifndef TOWPATH_ABI_BANDWIDTH_H
#define TOWPATH_ABI_BANDWIDTH_H

#include <linux/bpf.h>
#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum bandwidth_limits {
	BANDWIDTH_AGGREGATES = 0x4000, /* so that bits 14 and 15, kube-proxy's, are never set */
	BANDWIDTH_MARK = 0x7470,       /* the upper half of skb->mark; the lower is the number */
	BANDWIDTH_COST_SHIFT = 20,     /* fraction bits of costs */
	BANDWIDTH_WAYS = 8,	       /* flows in a set: one cache line */
	BANDWIDTH_FLOWS = 128,	       /* of an aggregate, a power of two */
	BANDWIDTH_TAG_SHIFT = 52,      /* above a flow's time: what tells it from others */
	BANDWIDTH_TIME_SHIFT = 6,      /* a flow's time is in units of so many bits of ns */
	BANDWIDTH_COUNT_SHIFT = 20,    /* flows are counted when so many bits of ns have passed */
	BANDWIDTH_POD_SLOTS = 0x4000,  /* of devices' indexes, a power of two */
	BANDWIDTH_SETS_SHIFT = 16,     /* sets that have flows which are ahead, a bit each */
	BANDWIDTH_STAMP_SECONDS = 2,   /* a pod's own stamp may lie so far ahead */
};
BTF_KEEP(enum bandwidth_limits);

/*
 * What an aggregate may have. User space writes it, each word whole: a change is seen word by
 * word. Costs are ns per byte, in fixed point; 0: no limit.
 */
struct bandwidth_limit {
	__u64 egress_cost;
	__u64 egress_packet; /* ns per packet at least, 0: no limit on packets */
	__u64 egress_burst;  /* ns that an idle aggregate may make up for, where fq paces */
	__u64 egress_bucket; /* the same where there is no fq: a token bucket's depth */
	__u64 horizon;	     /* ns of delay above which packets are dropped */
	__u64 mark;	     /* ns of delay above which they are marked (ECN) */
	__u64 ingress_cost;
	__u64 ingress_packet;
	__u64 ingress_bucket;
	__u32 group;	/* aggregate that is charged as well, 0: none */
	__u32 priority; /* skb->priority */
};

/*
 * How far an aggregate is. `flow`: sets of BANDWIDTH_WAYS words, each a flow's tag and its time. A
 * packet moves it by what it costs, times the number of flows whose time lies ahead; a flow is so
 * counted for the share of time that it takes of its fair share, which makes that share the one of
 * max-min fairness.
 */
struct bandwidth_state {
	__u64 next;
	__u64 active; /* flows that were ahead, their sets, and when that was counted (high half) */
	struct bpf_spin_lock lock; /* for kernels without atomics that return a value */
	__u32 _reserved;
	__u64 _line[5]; /* sets begin at a cache line */
	__u64 flow[BANDWIDTH_FLOWS];
};

/* The token bucket of what an aggregate receives: the same as `next`, at most `bucket` behind. */
struct bandwidth_bucket {
	__u64 next;
	struct bpf_spin_lock lock;
	__u32 _reserved;
};

/*
 * A device on the host whose other end is a pod's, or several pods'. All are in `bw_pods`. Most are
 * in the slot of their index as well, which is found without a hash: it is out of use while its
 * `ifindex` is 0, or another device's.
 */
struct bandwidth_pod {
	__u32 ifindex;
	__u32 aggregate; /* of all that comes by it, and isn't in `bandwidth_addresses`; 0: none */
	__u32 flags;	 /* enum bandwidth_pod_flags */
};

enum bandwidth_pod_flags {
	BANDWIDTH_BY_ADDRESS = 1 << 0, /* addresses behind it have aggregates of their own */
};
BTF_KEEP(enum bandwidth_pod_flags);

struct bandwidth_address {
	struct address address;
	__u32 family;
};

/* What user space calls an aggregate, for the next process that has these tables. Empty: free. */
struct bandwidth_name {
	__u8 text[136];
};

/* What became of a packet: exactly one for each packet and program. */
enum bandwidth_verdict {
	/* at the pod's device, from the pod */
	BANDWIDTH_TAGGED = 0, /* the number was written to its mark */
	BANDWIDTH_ROUTED,     /* the same, and put to the way out past the stack */
	/* at the physical device */
	BANDWIDTH_SENT,		/* may leave now */
	BANDWIDTH_DELAYED,	/* has a time of departure */
	BANDWIDTH_MARKED,	/* the same, and tells congestion (ECN) */
	BANDWIDTH_UNPACED,	/* no IP packet: charged, and not delayed */
	BANDWIDTH_UNLIMITED,	/* of no aggregate, or one without a limit here */
	BANDWIDTH_DROP_EXCESS,	/* its flow's delay is beyond the horizon */
	BANDWIDTH_DROP_FULL,	/* all flows together are far beyond it */
	BANDWIDTH_DROP_GROUP,	/* the same two of the group */
	BANDWIDTH_DROP_STAMP,	/* its own stamp is too far ahead */
	BANDWIDTH_DROP_POLICED, /* no tokens; where there is no fq */
	/* at the pod's device, to the pod */
	BANDWIDTH_RECEIVED,
	BANDWIDTH_RECEIVED_MARKED,
	BANDWIDTH_DROP_RECEIVED,
	BANDWIDTH_VERDICTS,
};
BTF_KEEP(enum bandwidth_verdict);

/* One CPU's, for each aggregate. */
struct bandwidth_counts {
	__u64 packets[16];   /* by enum bandwidth_verdict; a GSO packet is one */
	__u64 egress_bytes;  /* charged: as on the wire, all segments with their headers */
	__u64 ingress_bytes; /* the same of what went to the pod */
	__u64 converted;     /* stamps of CLOCK_TAI that were made monotonic */
	__u64 cleared;	     /* stamps of a clock that is none of both: removed */
	__u64 delay;	     /* ns, the sum ... */
	__u64 longest;	     /* ... and the largest of delays that were given */
};

#pragma GCC diagnostic pop

#endif
