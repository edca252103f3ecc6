# SPDX-License-Identifier: Apache-2.0
"""The Maglev array, mapped a range at a time.

It is the largest of the tables and written rarely: mapping it as a whole would
count it as this process's memory for good.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.kernel.bpf.maps import Map

    Array = np.ndarray[Any, Any]


_WINDOW = 4096
"""Elements that are mapped at once, 256 KiB: as long as they are they count as this process's."""


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
        self._mapped = ExitStack()
        self._slots: Array = np.zeros(0, np.uint32)
        self._first = self._last = 0
        """Elements that are mapped: those before the last."""

    @property
    def capacity(self) -> int:
        """Slots that there are."""
        return self._map.max_entries * self._line

    def fill(self, base: int, make: Callable[[], Array]) -> None:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on."""
        handles = make()
        self._window(base, len(handles))[:] = handles

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""
        if not count:
            return np.zeros(0, np.uint32)
        return self._window(base, count).copy()

    def _window(self, base: int, count: int) -> Array:
        """Return a range of slots, which is mapped until another one is asked for.

        Ranges beside each other are mapped together: tables that are made together are.
        """
        first, last = base // self._line, (base + count - 1) // self._line + 1
        if first < self._first or last > self._last:
            end = min(max(last, first + _WINDOW), self._map.max_entries)
            self._first = self._last = 0
            self._slots = np.zeros(0, np.uint32)
            self._mapped.close()
            mapped = self._mapped.enter_context(self._map.mmap(first, end - first))
            self._slots = mapped.array["handle"].reshape(-1)
            self._first, self._last = first, end
        return self._slots[base - self._first * self._line :][:count]
