/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the recorder and user space share: records in a ring, and the state of captures.
 * The rules of base.h hold here too. native/recorder/ includes this file, Python reads the BTF.
 */
#ifndef TOWPATH_ABI_RECORDER_H
#define TOWPATH_ABI_RECORDER_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum record_limits {
	RECORD_CAPTURES = 8,	     /* at a time: each has a slot, a bit and a ring */
	RECORD_MAX_SNAPLEN = 0xffff, /* bytes of a frame that are kept at most */
	RECORD_LEASE = 2048,	 /* jiffies without a beat (2 to 20 s) until a capture is dead */
	RECORD_CPU_SHIFT = 48,	 /* in a packet's number: its CPU, above the count there */
	RECORD_LOSSES = 1 << 12, /* devices, by capture and direction, that losses are counted of */
};
BTF_KEEP(enum record_limits);

enum record_direction {
	RECORD_IN = 0,	/* as it came in */
	RECORD_OUT = 1, /* as it was sent on */
};
BTF_KEEP(enum record_direction);

/* With RECORD_OUT: the packet has the addresses and ports that it came with, if in a tunnel. */
enum record_sent {
	RECORD_COPY = 1 << 1,
};
BTF_KEEP(enum record_sent);

/* Which packets a capture is for: all, unless one of these is set; both where both are. */
enum record_match {
	RECORD_RULES = 1 << 0,	    /* those that a rule matches */
	RECORD_EXPRESSION = 1 << 1, /* those that record_expression() says yes to */
};
BTF_KEEP(enum record_match);

/*
 * In a ring, before the bytes of the frame. What came in and what was sent on of one packet
 * have the same number; both have what became of it, since neither is written before that
 * is known.
 */
struct record {
	__u64 time;	/* CLOCK_MONOTONIC, nanoseconds */
	__u64 packet;	/* number of the packet */
	__u64 flow;	/* hash of the 5-tuple that it came with */
	__u32 ifindex;	/* of the device that it came in on, or was sent out of */
	__u32 length;	/* of the frame */
	__u32 captured; /* bytes of it that follow */
	__u32 service;	/* index of the service, 0 = none */
	__u32 handle;	/* of the backend, 0 = none */
	__u8 verdict;	/* enum verdict */
	__u8 action;	/* enum xdp_action */
	__u8 direction; /* enum record_direction */
	__u8 _reserved;
};

/*
 * A capture, by its slot. User space adds to `beat` while somebody reads the ring; without
 * that the program takes the capture for dead, and no longer works for it.
 */
struct record_slot {
	__u32 beat;
	__u32 snaplen;	  /* bytes of a frame that it wants */
	__u32 directions; /* 1 << enum record_direction, with RECORD_COPY and without */
	__u32 _reserved;
};

/* The last beat of a capture that a CPU saw, and when. */
struct record_seen {
	__u32 beat;
	__u32 jiffies;
};

struct record_count {
	__u64 seen;    /* packets that the capture was asked about */
	__u64 matched; /* of these it was for so many, before sampling */
};

/* One CPU's packet, from the time that it came in until it is written, and what it counts. */
struct record_cpu {
	struct flow_key flow; /* that it came with; family 0: no IP */
	__u64 packets;	      /* that were captured here */
	__u32 chosen;	      /* a bit for each capture that wants it */
	__u32 snaplen;	      /* the largest of those */
	__u32 captured[2];    /* bytes of the frame that were kept, by direction */
	__be16 vlan;	      /* tag control word of the outer tag, 0 = untagged */
	__u8 authenticated;   /* `flow` is what is behind an authentication header */
	__u8 _reserved;
	__u32 directions; /* those that the captures that want it want, as record_slot has them */
	struct record_seen seen_beat[8];
	struct record_count counts[8];
};

/* A frame that is being made a record, one for each direction. */
struct record_frame {
	struct record head;
	__u8 data[0x10000];
};

/* Records that found no room in the ring. */
struct record_loss {
	__u32 slot;
	__u32 ifindex;
	__u32 direction; /* enum record_direction */
};

#pragma GCC diagnostic pop

#endif
