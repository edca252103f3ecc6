/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend the flow table has for a flow. */
#ifndef TOWPATH_LB_KNOWN_H
#define TOWPATH_LB_KNOWN_H

#include "lb/flow_table.h"
#include "lb/lookup.h"

/*
 * The backend that the flow table has for a flow, NULL if it has none that holds. A port that is
 * used again by its client, or a SYN that nobody has answered, is no reason to stay with a backend
 * that takes no new flows. Datagrams have no SYN: what comes after a long pause is a new flow.
 * Changes nothing.
 */
static __always_inline struct backend *
known_backend(struct flow_place *place, const struct flow_id *id, const struct service *service)
{
	struct backend *backend = backend_of(flow_lookup(place, id));

	if (likely(backend) && likely(tcp_goes_on(id->tcp_flags)))
		return backend;
	if (likely(backend) && likely(!flow_has_ended(place, id, &service->flow_timeout)) &&
	    (likely(!flow_begins_anew(place, id)) || takes_flows(backend)))
		return backend;
	return NULL;
}

#endif
