/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The dispatcher of libxdp's protocol, which calls up to ten programs on one
 * device in turn. What is here is the protocol's and not ours: all who share
 * a device read and write it, as the only element of the dispatcher's only
 * map (xdp-tools, lib/libxdp/protocol.org; version 3 as in its header
 * xdp/prog_dispatcher.h).
 */
#ifndef TOWPATH_ABI_DISPATCHER_H
#define TOWPATH_ABI_DISPATCHER_H

#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

enum dispatcher_limits {
	DISPATCHER_PROGRAMS = 10,
	DISPATCHER_MAGIC = 236, /* 'X' + 'D' + 'P' */
	/* A function that no program has replaced returns it; the chain goes on. */
	DISPATCHER_NOBODY = 31,
};

/* Version 2: libxdp 1.3 to 1.5. */
struct dispatcher_config {
	__u8 magic;
	__u8 version;
	__u8 programs;	/* how many there are */
	__u8 fragments; /* 1: frames in fragments are taken, as all of them do */
	__u32 actions[DISPATCHER_PROGRAMS];    /* bit 1 << XDP_*: the chain goes on */
	__u32 priorities[DISPATCHER_PROGRAMS]; /* ascending */
	__u32 flags[DISPATCHER_PROGRAMS];      /* BPF_F_XDP_HAS_FRAGS or 0 */
};

/* Version 3: libxdp 1.6. */
struct dispatcher_config_v3 {
	__u8 magic;
	__u8 version;
	__u8 programs;
	__u8 fragments;
	__u32 actions[DISPATCHER_PROGRAMS];
	__u32 priorities[DISPATCHER_PROGRAMS];
	__u32 flags[DISPATCHER_PROGRAMS];
	__u8 device_bound; /* 1: programs may read what this device tells of packets */
	__u8 _reserved[3];
};

#pragma GCC diagnostic pop

#endif
