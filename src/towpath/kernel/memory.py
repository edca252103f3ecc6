# SPDX-License-Identifier: Apache-2.0
"""What a process keeps of memory that it has used."""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD = 1 << 16  # bytes


def keep_little() -> None:
    """Have the C library give back to the kernel what is free.

    By itself it keeps what each thread has ever used, and more the larger the pieces were: a
    process with a few threads grows by a tenth. Without the GNU C library nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _THRESHOLD)
    mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)


def give_back() -> None:
    """Have it give back also what is free in the midst of what isn't, as after a large change."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
