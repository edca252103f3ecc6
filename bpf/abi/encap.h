/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a tunnel has between its outer IP header and the packet. */
#ifndef TOWPATH_ABI_ENCAP_H
#define TOWPATH_ABI_ENCAP_H

#include <linux/types.h>

#include "abi/btf.h"

/*
 * A tunnel's `encap` is one word, so that it is stored at once: its kind, and from ENCAP_PORT_SHIFT
 * on the port that UDP goes to, in host order. A kind without its low two bits is how many bytes
 * there are.
 */
enum encap_kind {
	ENCAP_IPIP = 0,	 /* nothing: RFC 2003, RFC 2473 */
	ENCAP_GRE = 4,	 /* RFC 2784, without checksum, key and sequence number */
	ENCAP_FOU = 8,	 /* UDP */
	ENCAP_GUE = 9,	 /* UDP, as GUE's variant 1: the same on the wire */
	ENCAP_GUE0 = 12, /* UDP, and the header of GUE's variant 0 */
	ENCAP_KIND = 15,
	ENCAP_LENGTH = 12,
	ENCAP_PORT_SHIFT = 16,
};
BTF_KEEP(enum encap_kind);

#endif
