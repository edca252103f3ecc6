/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TOWPATH_LB_ENUMS_H
#define TOWPATH_LB_ENUMS_H

#include "lb/maps.h"

/* Enums that occur in expressions only, kept for those who read the BTF. */
const enum verdict btf_verdict __attribute__((used)) = 0;
const enum family btf_family __attribute__((used)) = 0;
const enum service_flags btf_service_flags __attribute__((used)) = 0;
const enum trace_flags btf_trace_flags __attribute__((used)) = 0;
const enum backend_state btf_backend_state __attribute__((used)) = 0;
const enum handle_bits btf_handle_bits __attribute__((used)) = 0;
const enum vip_limits btf_vip_limits __attribute__((used)) = 0;
const enum vip_kind btf_vip_kind __attribute__((used)) = 0;
const enum vip_families btf_vip_families __attribute__((used)) = 0;
const enum port_pages btf_port_pages __attribute__((used)) = 0;
const enum flow_flags btf_flow_flags __attribute__((used)) = 0;
const enum flow_limits btf_flow_limits __attribute__((used)) = 0;
const enum nat_limits btf_nat_limits __attribute__((used)) = 0;
const enum nat_marks btf_nat_marks __attribute__((used)) = 0;
const enum health_verdict btf_health_verdict __attribute__((used)) = 0;
const enum fragment_limits btf_fragment_limits __attribute__((used)) = 0;
const enum maglev_limits btf_maglev_limits __attribute__((used)) = 0;
const enum drop_limits btf_drop_limits __attribute__((used)) = 0;
const enum client_limits btf_client_limits __attribute__((used)) = 0;
const enum source_limits btf_source_limits __attribute__((used)) = 0;
const enum fib_own_results btf_fib_own_results __attribute__((used)) = 0;

#endif
