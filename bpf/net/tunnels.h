/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Headers that tunnels have between the outer IP header and the packet, as they lie in it. */
#ifndef TOWPATH_NET_TUNNELS_H
#define TOWPATH_NET_TUNNELS_H

#include <linux/types.h>

/* RFC 2784, without options. */
struct gre_header {
	__be16 flags; /* and the version, 0 */
	__be16 ethertype;
};

/* Of GUE's variant 0 (draft-ietf-intarea-gue-09). */
struct gue_header {
	__u8 length; /* variant, C, and the length of what follows in words */
	__u8 protocol;
	__be16 flags;
};

#endif
