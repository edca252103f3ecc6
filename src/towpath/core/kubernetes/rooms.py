# SPDX-License-Identifier: Apache-2.0
"""The addresses of one pool in one family: how many there are, and the next one that is free."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from towpath.model.kinds import Address
    from towpath.model.kinds.ranges import AddressRange


class Room:
    """Disjoint ranges in order. Nothing is made of each address: a /64 has 2^64."""

    def __init__(self, ranges: Iterable[AddressRange]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._before: list[int] = []
        """How many addresses are in ranges before."""
        self.size = 0
        found = sorted((int(each.first), int(each.last), type(each.first)) for each in ranges)
        self._made = found[0][2]
        for first, last, _ in found:
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)
        for first, last in zip(self._firsts, self._lasts, strict=True):
            self._before.append(self.size)
            self.size += last - first + 1

    def __contains__(self, address: Address) -> bool:
        """Of this family only."""
        at = bisect_right(self._firsts, int(address)) - 1
        return at >= 0 and int(address) <= self._lasts[at]

    def meets(self, other: Room) -> bool:
        """Whether any address is in both."""
        return any(
            first <= last_of_other and first_of_other <= last
            for first, last in zip(self._firsts, self._lasts, strict=True)
            for first_of_other, last_of_other in zip(other._firsts, other._lasts, strict=True)
        )

    def free(self, begin: int, taken: Container[Address]) -> Address | None:
        """Return the first that isn't taken from the ``begin``-th on, and around.

        It looks at one address more than are taken, at most.
        """
        begin %= self.size
        at = bisect_right(self._before, begin) - 1
        number = self._firsts[at] + begin - self._before[at]
        for _ in range(self.size):
            if number > self._lasts[at]:
                at = (at + 1) % len(self._firsts)
                number = self._firsts[at]
            address: Address = self._made(number)
            if address not in taken:
                return address
            number += 1
        return None
