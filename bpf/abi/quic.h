/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connection ids of QUIC that name a backend: of services with SERVICE_QUIC.
 */
#ifndef TOWPATH_ABI_QUIC_H
#define TOWPATH_ABI_QUIC_H

#include <linux/types.h>

#include "abi/btf.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/*
 * What a service's ids look like, by their first three bits: an element of `quic_forms` has a byte
 * for each value of these, the one for 0 in its lowest bits. QUIC-LB's ids have their configuration
 * there (draft-ietf-quic-load-balancers), Katran's in two of them their version. 0: such ids name
 * nobody. One word is one store.
 */
enum quic_form {
	QUIC_FORM_LENGTH = 0x0f,  /* bytes of the server's id, which is behind the first octet */
	QUIC_FORM_TELLS = 0x10,	  /* the first octet's other bits are how many octets follow it */
	QUIC_FORM_SHIFTED = 0x20, /* the server's id is in 16 bits from the third one on */
	QUIC_FORM_KATRAN = 0x40,  /* ids have eight bytes at least, whatever follows the server's */
};
BTF_KEEP(enum quic_form);

enum quic_limits {
	QUIC_FORMS = 8,
	QUIC_NONCE = 4, /* bytes behind a server's id, at least, in QUIC-LB's */
	QUIC_KATRAN = 8,
	QUIC_PROBES = 32, /* slots of the index looked at before giving up */
};
BTF_KEEP(enum quic_limits);

/*
 * A slot of `quic_servers`, an index with linear probing: the handle of the backend that has an id.
 * That of one that has left may be there for a moment: no backend has the handle then. Published by
 * its last store, the handle; 0: nobody has the id. A slot was never used if its service is 0.
 */
struct quic_server {
	__u64 id;
	__u32 service;
	__u32 handle;
};

/* What an id has said. */
enum quic_outcome {
	QUIC_NAMED = 0, /* its backend */
	QUIC_INITIAL,	/* nothing: the client has chosen it */
	QUIC_UNKNOWN,	/* nothing: of no form that is known here, or no backend has it */
	QUIC_DOWN,	/* a backend that gets no packets: it is down, or has just left */
	QUIC_NOTHING,	/* there is none, as in ICMP */
};
BTF_KEEP(enum quic_outcome);

/* One CPU's count of packets of a service, by what their ids have said. */
struct quic_cpu {
	__u64 named;
	__u64 initial;
	__u64 unknown;
	__u64 down;
};

#pragma GCC diagnostic pop

#endif
