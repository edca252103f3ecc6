/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What packets leave behind for those that follow: of their flow, of the packet that they are
 * a fragment of, of their client.
 */
#ifndef TOWPATH_ABI_FLOWS_H
#define TOWPATH_ABI_FLOWS_H

#include <linux/types.h>

#include "abi/base.h"
#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/*
 * ---- Flows ----------------------------------------------------------------
 *
 * The flow table is set-associative: FLOW_WAYS entries and, in an array of its own
 * that stays in the CPU's cache, a word with a byte of tag for each of them (0 is
 * a free way). A flow that isn't known is known not to be by that word alone.
 *
 * An entry needs no destination: the service stands for address, port and
 * protocol. `ref` is its publishing word: the other bits of the flow's keyed hash in the
 * low half, the handle in the high half. It is cleared before the rest is
 * rewritten and stored after it. Two CPUs that write one entry at once can leave
 * a key that neither meant; the hash in `ref` does not match such a key, so the
 * entry is never found and ages out.
 */
struct flow {
	__u64 ref;
	struct address saddr;
	__u32 service; /* and enum flow_flags */
	__be16 sport;
	__u16 seen; /* low bits of jiffies >> FLOW_SEEN_SHIFT */
};

/*
 * What the client has sent, above any index of a service. ENDING: FIN or RST, and no SYN
 * since. What the other side sends isn't seen; as long as it does, the client's
 * acknowledgements keep the entry young. OPENING: nothing but SYNs. Neither: the flow is
 * established, or not TCP's.
 */
enum flow_flags {
	FLOW_ENDING = 1 << 30,
	FLOW_OPENING = 1U << 31,
	FLOW_STATE = FLOW_ENDING | FLOW_OPENING,
};
BTF_KEEP(enum flow_flags);

/*
 * A CPU learns so many flows in a jiffy and no more. In a flood the rest go by
 * Maglev, and the table keeps the flows that it has.
 */
struct flow_cpu {
	__u32 tick;
	__u32 learnt;
	__u32 answer_tick;
	__u32 answered; /* packets that were too large, see FLOW_ANSWERS */
	__u32 full;	/* in this tick a flow found no room in the table of translations */
	__u32 _reserved[11];
};

enum flow_limits {
	FLOW_WAYS = 8,
	FLOW_SEEN_SHIFT = 6,
	FLOW_LEARN = 512, /* in a jiffy, which has 1 to 10 ms */
	FLOW_ANSWERS = 8, /* to packets that are too large, in a jiffy */
};
BTF_KEEP(enum flow_limits);

/*
 * ---- Fragments ------------------------------------------------------------
 *
 * Only the first fragment of a packet has ports. It leaves them here, and the
 * backend that it went to, for those that follow: they are the packet's if source,
 * destination, identification and, for IPv4, protocol are the same (RFC 791;
 * RFC 8200, 4.5). Handle 0: it went to the kernel, and so do they. Of a backend's answer that
 * is translated the handle is the backend's that sent it.
 *
 * The table is set-associative. All packets of one pair of addresses share
 * FRAGMENT_SPREAD sets out of all those there are, which ones only this machine
 * knows: a sender who has more fragments on the way than fit there displaces his
 * own, and nobody else's.
 *
 * `ref` publishes an entry, as a flow's does: bits of the keyed hash in the low half,
 * never 0, and the handle in the high half.
 */
struct fragment {
	__u64 ref;
	struct address saddr;
	struct address daddr;
	__be32 id; /* IPv4: the low half, as it lies in the header */
	__be16 sport;
	__be16 dport;
	__u32 seen;	  /* when, in 2^20 ns */
	__u8 protocol;	  /* of the first fragment's transport header */
	__u8 family;	  /* enum family */
	__u8 ip_protocol; /* as the IPv4 header has it, which may be another; IPv6: 0 */
	__u8 _reserved;
	__u16 checksum_at; /* of TCP, in what is fragmented, if the first one ends before; or 0 */
	__u16 _reserved2[3];
};

enum fragment_limits {
	FRAGMENT_WAYS = 8,
	FRAGMENT_SPREAD = 16,
	FRAGMENT_LIFE = 4000, /* in 2^20 ns, so 4.2 s */
};
BTF_KEEP(enum fragment_limits);

/*
 * ---- Clients --------------------------------------------------------------
 *
 * Which backend a client was given by a service with affinity. Set-associative and
 * published by `ref` as the flow table is.
 */
struct client {
	__u64 ref;
	struct address addr;
	__u32 service;
	__u32 seen; /* seconds since boot: when a flow of the client last began */
};

enum client_limits {
	CLIENT_WAYS = 8,
};
BTF_KEEP(enum client_limits);

#pragma GCC diagnostic pop

#endif
