# SPDX-License-Identifier: Apache-2.0
"""Array maps as memory of this process."""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING

import numpy as np

from towpath.closeable import Closeable
from towpath.kernel.bpf._records import Array, round_up, view
from towpath.kernel.errors import KernelError, errno_name

if TYPE_CHECKING:
    from towpath.kernel.bpf.btf import Dtype

_HINTS = {
    "EPERM": "the map is frozen: writable=False is allowed",
    "EACCES": "the map was opened or created read-only",
    "ENOTSUPP": "only arrays declared with BPF_F_MMAPABLE can be mapped",
    "EINVAL": "only arrays declared with BPF_F_MMAPABLE can be mapped",
}


class MappedArray(Closeable):
    """Elements ``start`` to ``start + count`` of an array map, shared with the kernel.

    ``array`` is a numpy view: what is stored there, programs see at once. Only whole stores of up
    to 8 aligned bytes are atomic. Closing ends the view; one that was taken from it (a slice, a
    field) stays valid, and keeps the memory mapped, until it is itself gone.

    A context manager, which closes it.
    """

    def __init__(
        self, fd: int, name: str, dtype: Dtype, start: int, count: int, *, writable: bool
    ) -> None:
        stride = round_up(dtype.itemsize)
        # An offset into the map has to be a multiple of the page size.
        first = start * stride // mmap.PAGESIZE * mmap.PAGESIZE
        length = round_up((start + count) * stride - first, mmap.PAGESIZE)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._memory = mmap.mmap(fd, length, mmap.MAP_SHARED, protection, offset=first)
        except OSError as error:
            number = error.errno or 0
            hint = _HINTS.get(errno_name(number), "")
            raise KernelError(f"mmap map {name}", number, hint) from error
        # By way of frombuffer: unlike ndarray() it keeps memory from being unmapped under it.
        window = np.frombuffer(self._memory, np.uint8)[start * stride - first :]
        self._array: Array | None = view(window, dtype, (count,), (stride,))
        self._name = name

    @property
    def array(self) -> Array:
        """The elements, shape ``(count,)`` and the value's own. ValueError: closed."""
        if self._array is None:
            raise ValueError(f"map {self._name}: this mapping is closed")
        return self._array

    def close(self) -> None:
        """End the view, and the mapping when nothing else looks into it. Twice is once."""
        self._array = None
        with contextlib.suppress(BufferError):
            self._memory.close()
