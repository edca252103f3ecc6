# SPDX-License-Identifier: Apache-2.0
"""Room for the Maglev tables: ranges of one array.

One array for all services makes replacing a table a single store and needs no
map per service. The allocator is first-fit over a sorted list of free ranges:
tables are few and mostly of one size.

A range that is given up is retired: it is free again after a grace period, when no
packet can still be reading it. Where a range will be depends on nothing but what was
allocated and given up before, so that a dry run over a copy finds the same ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from towpath.datapath.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Callable


class NoExtentError(CapacityError):
    """No free range is large enough."""


Range = tuple[int, int]
"""Base and number of slots."""


class Extents:
    """Hands out ranges of ``size`` slots. Knows nothing of what is in them.

    ``wait_for_readers`` returns when no packet reads any more what is retired by then.
    """

    def __init__(self, size: int, wait_for_readers: Callable[[], None] = lambda: None) -> None:
        self.size = size
        self._wait = wait_for_readers
        self._free: list[Range] = [(0, size)]
        self._retired: list[Range] = []

    def dry_run(self) -> Extents:
        """Return extents in the same state that wait for nobody."""
        made = Extents(self.size)
        made._free, made._retired = self._free.copy(), self._retired.copy()
        return made

    @property
    def largest(self) -> int:
        """Slots of the largest range that could be allocated without a wait."""
        return max((count for _, count in self._free), default=0)

    def allocate(self, count: int) -> int | None:
        """Return the base of a range of ``count`` slots, None if there is none.

        Waits for readers, if that can help, and only then.
        """
        base = self._first_fit(count)
        if base is None and self.reclaim():
            base = self._first_fit(count)
        return base

    def reserve(self, base: int, count: int) -> None:
        """Take a given range, which is in use already. ValueError if it isn't free."""
        i = bisect_left(self._free, (base + 1,)) - 1
        start, room = self._free[i] if i >= 0 else (0, 0)
        if count <= 0 or not start <= base or base + count > start + room:
            raise ValueError(f"slots {base} to {base + count - 1} are not free")
        pieces = [(start, base - start), (base + count, start + room - base - count)]
        self._free[i : i + 1] = [piece for piece in pieces if piece[1]]

    def retire(self, base: int, count: int) -> None:
        """Give a range back once the packets now in flight are through."""
        self._retired.append((base, count))

    def reclaim(self) -> bool:
        """Wait for readers, so that nothing is retired any more. False if nothing did."""
        if not self._retired:
            return False
        self._wait()
        for each in self._retired:
            self._release(*each)
        self._retired.clear()
        return True

    def _first_fit(self, count: int) -> int | None:
        for i, (base, room) in enumerate(self._free):
            if room >= count:
                self._free[i : i + 1] = [(base + count, room - count)] if room > count else []
                return base
        return None

    def _release(self, base: int, count: int) -> None:
        """Join a range with the free ranges beside it."""
        insort(self._free, (base, count))
        i = bisect_left(self._free, (base, count))
        if i + 1 < len(self._free) and base + count == self._free[i + 1][0]:
            count += self._free.pop(i + 1)[1]
        if i and sum(self._free[i - 1]) == base:
            i, (base, before) = i - 1, self._free[i - 1]
            count += before
            self._free.pop(i + 1)
        self._free[i] = base, count
