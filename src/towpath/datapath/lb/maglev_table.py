# SPDX-License-Identifier: Apache-2.0
"""The Maglev array, mapped a range at a time.

It is the largest of the tables and written rarely: mapping it as a whole would
count it as this process's memory for good.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from towpath.native.library import slot_sum, slot_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from towpath.kernel.bpf.maps import Map

    Array = np.ndarray[Any, Any]


_WINDOW = 4096
"""Elements that are mapped at once, 256 KiB: as long as they are they count as this process's."""
_SUMMED = 1 << 16
"""The same for as long as sums are made, 4 MiB."""


class Slots(Protocol):
    """Ranges of slots that can be filled and read."""

    def fill(self, base: int, make: Callable[[], Array]) -> int:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on; their sum."""

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""

    def sums(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Return the sums of ranges: base and number of slots of each."""


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

    def fill(self, base: int, make: Callable[[], Array]) -> int:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on; their sum."""
        handles = make()
        self._window(base, len(handles))[:] = handles
        return slot_sum(handles)

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""
        if not count:
            return np.zeros(0, np.uint32)
        return self._window(base, count).copy()

    def sums(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Return the sums of ranges, none empty: base and number of slots of each."""
        made = np.zeros(len(ranges), np.uint64)
        order = np.array(sorted(range(len(ranges)), key=ranges.__getitem__), np.intp)
        bases, counts = np.array(ranges, np.uint64).reshape(-1, 2)[order].T
        ends = bases + counts
        at = 0
        while at < len(order):
            # As many as there are in one window from the first on.
            last = np.searchsorted(ends, bases[at] + np.uint64(_SUMMED * self._line), "right")
            some = slice(at, max(int(last), at + 1))
            base = int(bases[at])
            window = self._window(base, int(ends[some].max()) - base)
            firsts = bases[some] - np.uint64(base)
            made[order[some]] = slot_sums(window, firsts, counts[some].astype(np.uint32))
            at = some.stop
        self._unmap()
        found: list[int] = made.tolist()
        return found

    def _unmap(self) -> None:
        self._first = self._last = 0
        self._slots = np.zeros(0, np.uint32)
        self._mapped.close()

    def _window(self, base: int, count: int) -> Array:
        """Return a range of slots, which is mapped until another one is asked for.

        Ranges beside each other are mapped together: tables that are made together are.
        """
        first, last = base // self._line, (base + count - 1) // self._line + 1
        if first < self._first or last > self._last:
            end = min(max(last, first + _WINDOW), self._map.max_entries)
            self._unmap()
            mapped = self._mapped.enter_context(self._map.mmap(first, end - first))
            self._slots = mapped.array["handle"].reshape(-1)
            self._first, self._last = first, end
        return self._slots[base - self._first * self._line :][:count]
