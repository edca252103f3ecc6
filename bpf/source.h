/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sources a service is for. */
#ifndef TOWPATH_SOURCE_H
#define TOWPATH_SOURCE_H

#include "maps.h"
#include "parse.h"

/*
 * Whether a prefix of the service's set has the packet's source. The number is read
 * once: it may be replaced at any time, and the set that it names is whole until all
 * packets that have read it are through. Out of line, where its stack is no one else's.
 */
static __noinline bool source_allowed(const struct flow_key *flow, const struct service *service)
{
	struct source_key key = { .prefixlen = SOURCE_BITS + 128 };

	if (!flow || !service)
		return false;
	key.set = *(const volatile __u32 *)&service->sources;
	key.family = flow->family;
	key.addr = flow->saddr;
	return !key.set || bpf_map_lookup_elem(&sources, &key);
}

#endif
