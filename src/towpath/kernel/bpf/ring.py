# SPDX-License-Identifier: Apache-2.0
"""BPF ring buffers (5.8): one reader's memory of what programs write."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from typing import Any

import numpy as np

from towpath.closeable import Closeable
from towpath.kernel.bpf.libbpf import check, lib
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.errors import CAP_BPF, KernelError, permission_hint

_EPERM = 1


class Ring(Closeable):
    """A ring of ``size`` bytes, a power of two and at least a page.

    ``consumer`` (writable) and ``producer`` are the positions, arrays of one 64-bit word, and
    ``data`` the bytes, twice one behind the other: what begins near the end goes on behind it.
    Whoever has taken records stores the position behind them in ``consumer``.

    A context manager, which closes. KernelError: there is no memory, or no permission.
    """

    def __init__(self, size: int, name: str = "ring") -> None:
        fd = lib.bpf_map_create(MapType.RINGBUF, name.encode(), 0, 0, size, None)
        hint = permission_hint(CAP_BPF) if fd == -_EPERM else ""
        self.fd: int = check(fd, f"make a ring buffer of {size} bytes", hint)
        self.size = size
        with ExitStack() as undo:
            undo.callback(self.close)
            self.consumer = self._map(mmap.PAGESIZE, 0, writable=True)[:8].view(np.uint64)
            rest = self._map(mmap.PAGESIZE + 2 * size, mmap.PAGESIZE, writable=False)
            self.producer = rest[:8].view(np.uint64)
            self.data = rest[mmap.PAGESIZE :]
            undo.pop_all()

    def _map(self, length: int, offset: int, *, writable: bool) -> Any:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            memory = mmap.mmap(self.fd, length, mmap.MAP_SHARED, protection, offset=offset)
        except OSError as error:
            raise KernelError("mmap a ring buffer", error.errno or 0) from error
        # The array keeps the memory mapped for as long as anything looks into it.
        return np.frombuffer(memory, np.uint8)

    def close(self) -> None:
        """Close the file descriptor, and let go of the memory. Twice is once.

        It is unmapped when no array that was taken from here looks into it any more.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.consumer = self.producer = np.zeros(0, np.uint64)
        self.data = np.zeros(0, np.uint8)
