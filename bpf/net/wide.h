/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For fields that lie beside each other and are read, compared or written at once. To the compiler
 * two pointers to other types never meet, but for these: without them it may read an address before
 * it is written, where that lies in no map.
 */
#ifndef TOWPATH_NET_WIDE_H
#define TOWPATH_NET_WIDE_H

#include <linux/types.h>

typedef __u16 __attribute__((may_alias)) wide16;
typedef __u32 __attribute__((may_alias)) wide32;
typedef __u64 __attribute__((may_alias)) wide64;

#endif
