/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What occurs in expressions only is in no object's BTF, where Python would look for it. A
 * constant of its type keeps it there; to C in user space, which has the header, this is nothing.
 */
#ifndef TOWPATH_ABI_BTF_H
#define TOWPATH_ABI_BTF_H

#ifdef __bpf__
#define BTF_KEEP(type)	       _BTF_KEEP(type, __COUNTER__)
#define _BTF_KEEP(type, count) __BTF_KEEP(type, count)
#define __BTF_KEEP(type, count) \
	const type btf_kept_##count __attribute__((used)) = (const type){ 0 }
#else
#define BTF_KEEP(type) _Static_assert(sizeof(type), "a type that is complete")
#endif

#endif
