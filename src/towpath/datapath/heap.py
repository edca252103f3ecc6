# SPDX-License-Identifier: Apache-2.0
"""Room for the Maglev tables: ranges of one array.

One array for all services makes replacing a table a single store and needs no
map per service. The allocator is first-fit over a sorted list of free ranges:
tables are few and mostly of one size.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class Heap:
    """Hands out ranges of ``size`` slots. Knows nothing of what is in them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)]

    @property
    def free_slots(self) -> int:
        """Slots in no table."""
        return sum(count for _, count in self._free)

    def allocate(self, count: int) -> int | None:
        """Return the base of a range of ``count`` slots, None if there is none."""
        for i, (base, room) in enumerate(self._free):
            if room >= count:
                self._free[i : i + 1] = [(base + count, room - count)] if room > count else []
                return base
        return None

    def reserve(self, base: int, count: int) -> None:
        """Take a given range, which is in use already. ValueError if it isn't free."""
        i = bisect_left(self._free, (base + 1,)) - 1
        start, room = self._free[i] if i >= 0 else (0, 0)
        if count <= 0 or not start <= base or base + count > start + room:
            raise ValueError(f"slots {base} to {base + count - 1} are not free")
        pieces = [(start, base - start), (base + count, start + room - base - count)]
        self._free[i : i + 1] = [piece for piece in pieces if piece[1]]

    def release(self, base: int, count: int) -> None:
        """Give a range back, joined with the free ranges beside it."""
        insort(self._free, (base, count))
        i = bisect_left(self._free, (base, count))
        while i + 1 < len(self._free) and sum(self._free[i]) == self._free[i + 1][0]:
            self._free[i : i + 2] = [(self._free[i][0], self._free[i][1] + self._free[i + 1][1])]
        if i and sum(self._free[i - 1]) == self._free[i][0]:
            self._free[i - 1 : i + 1] = [
                (self._free[i - 1][0], self._free[i - 1][1] + self._free[i][1])
            ]
