/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads a packet of masquerade's. */
#ifndef TOWPATH_MASQUERADE_PARSE_H
#define TOWPATH_MASQUERADE_PARSE_H

#include "masquerade/maps.h"
#include "xlat/parse.h"

_Static_assert(MASQ_DROP_PROTOCOL == MASQ_DROP_MALFORMED + (int)XLAT_NO_PORTS &&
		       MASQ_DROP_FRAGMENT == MASQ_DROP_MALFORMED + (int)XLAT_NO_FIRST,
	       "each problem has a verdict");

/* Reads a packet into w, whatever it is. False: it isn't IP. */
static __always_inline bool masq_parse(struct __sk_buff *skb, struct masq_work *w, const __u32 l3,
				       const bool from_pod)
{
	w->known = 0;
	if (!xlat_parse(skb, &w->p, l3, from_pod))
		return false;
	w->search.now = w->p.now;
	return true;
}

#endif
