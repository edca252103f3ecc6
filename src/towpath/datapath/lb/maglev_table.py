# SPDX-License-Identifier: Apache-2.0
"""The Maglev array, mapped a range at a time.

It is the largest of the tables and written rarely: mapping it as a whole would
count it as this process's memory for good.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.kernel.bpf.maps import Map

    Array = np.ndarray[Any, Any]


class Slots(Protocol):
    """Ranges of slots that can be filled and read."""

    def fill(self, base: int, make: Callable[[], Array]) -> None:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on."""

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""


class MaglevSlots:
    """Ranges of slots in ``maglev`` of ``bpf/lb/maps.h``, ``line`` of them to an element."""

    def __init__(self, table: Map, line: int) -> None:
        self._map = table
        self._line = line

    @property
    def capacity(self) -> int:
        """Slots that there are."""
        return self._map.max_entries * self._line

    def fill(self, base: int, make: Callable[[], Array]) -> None:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on."""
        handles = make()
        with self._window(base, len(handles), writable=True) as window:
            window[:] = handles

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""
        if not count:
            return np.zeros(0, np.uint32)
        with self._window(base, count, writable=False) as window:
            return window.copy()

    @contextmanager
    def _window(self, base: int, count: int, *, writable: bool) -> Iterator[Array]:
        first, last = base // self._line, (base + count - 1) // self._line
        with self._map.mmap(first, last - first + 1, writable=writable) as mapped:
            slots = mapped.array["handle"].reshape(-1)
            yield slots[base - first * self._line :][:count]
