/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services at the socket: what connect() and sendmsg() are told instead of a service's address,
 * and what a socket notes of it, so that its program goes on seeing the service's.
 */
#ifndef TOWPATH_ABI_SOCKET_H
#define TOWPATH_ABI_SOCKET_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* What programs at sockets count, and where. */
enum socket_hook {
	SOCKET_CONNECT = 0,
	SOCKET_SENDMSG,
	SOCKET_RECVMSG,
	SOCKET_GETPEERNAME,
	SOCKET_HOOKS,
};
BTF_KEEP(enum socket_hook);

/*
 * Every call adds one to exactly one of these. The first ones are counted for the service as
 * well. PASS_* leave the address as it was given.
 */
enum socket_verdict {
	SOCKET_BALANCED = 0,	  /* to a backend */
	SOCKET_PASS_FAMILY,	  /* the backend is of another family than the socket's address */
	SOCKET_PASS_SOURCES,	  /* the service is for some sources; a socket may have none yet */
	SOCKET_REFUSE_NO_BACKEND, /* the service has none */
	SOCKET_REFUSE_MEMORY,	  /* the kernel has no memory for the socket's note */
	SOCKET_PASS_NO_SERVICE,	  /* not a service's address, or not one that was noted */
	SOCKET_PASS_PROTOCOL,	  /* neither TCP nor UDP: ping sockets */
	SOCKET_PASS_CGROUP,	  /* a process of a cgroup that this isn't for */
	SOCKET_PASS_CHECK,	  /* a health check's socket: it goes by the service's address */
	SOCKET_RESTORED,	  /* the service's address is told instead of the backend's */
	SOCKET_VERDICTS,
};
BTF_KEEP(enum socket_verdict);

enum socket_limits {
	SOCKET_OF_SERVICE = 5, /* verdicts that are counted for services */
	SOCKET_PEERS = 8,      /* that an unconnected socket remembers */
	SOCKET_LEVELS = 16,    /* cgroups that a process is in: of so many it is looked */
	SOCKET_IDLE = 300,     /* seconds until datagrams to a service begin another flow */
	SOCKET_SLOTS = 16384,  /* connections of TCP that can be noted in a table; a power of two */
};
BTF_KEEP(enum socket_limits);

/* One CPU's. */
struct socket_cpu {
	__u64 calls[4][16]; /* by enum socket_hook and enum socket_verdict */
};

/* One CPU's, of a service: a row for each in `services`. */
struct socket_service_cpu {
	__u64 connect[8]; /* by enum socket_verdict, up to SOCKET_OF_SERVICE */
	__u64 sendmsg[8];
};

/* One CPU's, of a backend: a row for each in `backends`. Of another handle they are nobody's. */
struct socket_backend_cpu {
	__u32 handle;
	__u32 _reserved;
	__u64 connects;	 /* balanced */
	__u64 datagrams; /* the same */
	__u64 _reserved2;
};

/*
 * What a socket notes of a service that it talks to. It goes with the socket. `handle` holds
 * for the tables of the program that wrote it, which `epoch` names; `service` for all.
 * family 0: none.
 */
struct socket_note {
	struct address backend;
	struct address vip;
	__u64 service; /* a hash of what the service is for: see socket_service_ids */
	__be16 backend_port;
	__be16 vip_port;
	__u32 handle; /* of an earlier note for the same service: 0 */
	__u32 epoch;
	__u32 seen;	/* seconds since boot: when something was last sent, or it was connected */
	__u32 connects; /* how often connect() has been balanced: the next one may go elsewhere */
	__u8 family;	/* of both addresses */
	__u8 protocol;
	__u16 _reserved;
};

/* A note that isn't at its socket. `cookie`: whose it is, 0 = nobody's. */
struct socket_slot {
	__u64 cookie;
	__u64 netns; /* cookie of the socket's network namespace */
	struct bpf_spin_lock lock;
	__u32 _reserved;
	struct socket_note note;
};
BTF_KEEP(struct socket_slot);

/* Of a socket that sends without having connected: one for each backend. */
struct socket_peers {
	struct socket_note note[8];
	__u32 found; /* for a moment: the number of one of them */
	__u32 _reserved;
};

/* A socket that is listed, by one of its notes. */
struct socket_seen {
	struct socket_note note;
	struct address local;
	struct address remote;
	__u64 cookie;
	__u32 netns;   /* inode of its network namespace */
	__u32 ifindex; /* of the device that it is bound to, or 0 */
	__be16 local_port;
	__be16 remote_port;
	__u8 family; /* the socket's own */
	__u8 state;  /* TCP_*; a socket of UDP that is connected is TCP_ESTABLISHED */
	__u16 _reserved;
};
BTF_KEEP(struct socket_seen);

/* Whose the rows of the tables above are: those of other maps are nobody's. One record. */
struct socket_state {
	__u32 services; /* id of the map of services */
	__u32 epoch;
};

/*
 * MPTCP connects by a socket of TCP and is asked for its peer by another one. So the service is
 * found by the peer's address; of two services with that backend it is the one connected to last.
 */
struct socket_mptcp_key {
	__u64 netns; /* cookie */
	struct address addr;
	__be16 port;
	__u8 family;
	__u8 _reserved[5];
};

struct socket_mptcp {
	struct address vip;
	__be16 port;
	__u16 _reserved;
	__u32 _reserved2;
};

/* Which processes it is for. One record, which user space writes. */
struct socket_scope {
	__u64 within; /* id of the cgroup, 0 = of all */
	__u32 off;    /* how many cgroups `socket_off` has */
	__u32 _reserved;
};

/* The decision, as it is asked for and answered: by the hooks, and by test runs in a frame. */
struct socket_question {
	struct address addr;
	__be16 port;
	__u8 protocol;
	__u8 family;  /* of addr; IPv4-mapped ones are IPv4's */
	__u32 known;  /* handle of the backend that datagrams of the socket went to, 0 = none */
	__u64 netns;  /* cookie of the network namespace: the client, to services with affinity */
	__u64 socket; /* cookie */
	__u32 connects;
	__u32 seen; /* when `known` was sent to, in seconds since boot */
};

enum socket_decision {
	SOCKET_BY_MAGLEV = 1 << 0,
	SOCKET_BY_CLIENT = 1 << 1, /* the client was there before */
	SOCKET_BY_NOTE = 1 << 2,   /* the socket's datagrams went there before */
};
BTF_KEEP(enum socket_decision);

struct socket_answer {
	struct address addr; /* of the backend */
	__be16 port;
	__u8 family; /* of the backend's address */
	__u8 by;     /* enum socket_decision */
	__u32 verdict;
	__u32 service; /* index, 0 = none */
	__u32 handle;
	__u32 hash;
	__u32 slot;
	__u32 table_base;
	__u32 table_size;
};

/* A frame of a test run: a link header of 14 bytes, then this. */
struct socket_trial {
	struct socket_question question;
	__u64 cgroups[16]; /* ids of the process's cgroup and those it is in, by depth */
	struct socket_answer answer;
};
BTF_KEEP(struct socket_trial);

#pragma GCC diagnostic pop

#endif
