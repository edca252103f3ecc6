/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Has headers of a frame in fragments lie in its first one. Most drivers put them there; some put
 * there less, or nothing (mlx5 with a striding receive queue).
 */
#ifndef TOWPATH_NET_PULL_H
#define TOWPATH_NET_PULL_H

#include "net/parse.h"

enum pull_limits {
	PULL_HEADERS = 512, /* bytes; more would go on at the cost of headroom */
};

/*
 * In the place of these instructions user space puts a call of bpf_xdp_pull_data() before it loads
 * the program, where the kernel has that (6.18). So many, all of which can be reached, but are not.
 */
#define PULL_ROOM "8"

__noinline int pull_linear(struct xdp_md *ctx, __u32 bytes)
{
	int result;

	asm volatile("%0 = -1\n"
		     ".rept " PULL_ROOM "\n"
		     "%0 |= 0\n"
		     ".endr\n"
		     : "=r"(result)
		     : "r"(ctx), "r"(bytes));
	return result;
}

/* Whether so many bytes of a frame, or all that it has, lie in its first fragment by now. */
static __always_inline bool pull(struct xdp_md *ctx, __u32 bytes)
{
	struct cursor c = cursor_of(ctx);
	__s64 length;

	if (!xdp_fragments || cursor_left(&c) >= bytes)
		return true;
	length = frame_length(ctx);
	return !pull_linear(ctx, length < bytes ? length : bytes);
}

#endif
