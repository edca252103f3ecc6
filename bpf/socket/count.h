/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters of sockets. Hooks run in processes, which may be preempted by one another between
 * reading a counter and writing it: so these are added to in one step.
 */
#ifndef TOWPATH_SOCKET_COUNT_H
#define TOWPATH_SOCKET_COUNT_H

#include "socket/maps.h"

_Static_assert((int)SOCKET_REFUSE_MEMORY + 1 == (int)SOCKET_OF_SERVICE,
	       "services count the first verdicts");
_Static_assert((int)SOCKET_VERDICTS <= 16, "more verdicts than counters");

static __always_inline void socket_add(__u64 *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static __always_inline void count_call(__u32 cpu, const __u32 hook, __u32 verdict)
{
	struct socket_cpu *row = bpf_map_lookup_elem(&socket_cpus, &cpu);

	barrier_var(verdict);
	if (row)
		socket_add(&row->calls[hook][verdict & 15]);
}

static __always_inline void count_socket_service(__u32 cpu, const __u32 hook, __u32 service,
						 __u32 verdict)
{
	__u32 at = cpu * services_max + service;
	struct socket_service_cpu *row = bpf_map_lookup_elem(&socket_service_cpus, &at);

	barrier_var(verdict);
	if (row)
		socket_add(hook == SOCKET_CONNECT ? &row->connect[verdict & 7]
						  : &row->sendmsg[verdict & 7]);
}

static __always_inline void count_socket_backend(__u32 cpu, const __u32 hook, __u32 handle)
{
	__u32 at = cpu * backends_max + (handle & ((1 << HANDLE_INDEX_BITS) - 1));
	struct socket_backend_cpu *row = bpf_map_lookup_elem(&socket_backend_cpus, &at);

	if (!row)
		return;
	if (row->handle != handle) { /* what is there is another backend's */
		row->connects = 0;
		row->datagrams = 0;
		row->handle = handle;
	}
	socket_add(hook == SOCKET_CONNECT ? &row->connects : &row->datagrams);
}

/* Once for every call that may have been balanced. */
static __always_inline void count_forward(const __u32 hook, __u32 verdict, __u32 service,
					  __u32 handle)
{
	__u32 cpu = bpf_get_smp_processor_id();

	count_call(cpu, hook, verdict);
	if (verdict >= SOCKET_OF_SERVICE)
		return;
	count_socket_service(cpu, hook, service, verdict);
	if (verdict == SOCKET_BALANCED)
		count_socket_backend(cpu, hook, handle);
}

#endif
