/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A table of a version that calls things otherwise. */
#define dport_span dport_width

#include <towpath/wildcard.h>

WILDCARD_TABLE(acl, 10);

char _license[] SEC("license") = "GPL";
