# SPDX-License-Identifier: Apache-2.0
"""Finds which services are for the same packets, however many services there are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Protocol, Scope, ServiceKey

T = TypeVar("T")

_FEW = 64  # ranges that are put into a sorted list one by one


@dataclass(frozen=True, slots=True)
class Clash(Generic[T]):
    """What two services would both be for, and who has it."""

    key: ServiceKey
    owner: T


class KeyIndex(Generic[T]):
    """Keys of services with their owners, of which no two are for the same packets.

    A key for one port of one address is found by itself, others by their ranges of ports.
    """

    def __init__(self) -> None:
        self._exact: dict[ServiceKey, T] = {}
        self._others: dict[tuple[Address | Prefix, Protocol, Scope], _Ranges[T]] = {}

    def copy(self) -> KeyIndex[T]:
        """Return an index that can be changed by itself."""
        made = KeyIndex[T]()
        made._exact = self._exact.copy()
        made._others = {at: ranges.copy() for at, ranges in self._others.items()}
        return made

    def add(self, key: ServiceKey, owner: T) -> None:
        """Note a key that has no clash. One that is there gets the new owner."""
        if key.exact:
            self._exact[key] = owner
        else:
            self._others.setdefault(key.space, _Ranges()).add(key, owner)

    def remove(self, key: ServiceKey) -> None:
        """Forget a key, if it is there."""
        if key.exact:
            self._exact.pop(key, None)
        elif ranges := self._others.get(key.space):
            ranges.remove(key)

    def clash(self, key: ServiceKey) -> Clash[T] | None:
        """Return what a key would have in common with one that is there, if anything."""
        if key.exact:
            return Clash(key, self._exact[key]) if key in self._exact else None
        ranges = self._others.get(key.space)
        return ranges.clash(key) if ranges else None


class _Ranges(Generic[T]):
    """Keys of one address or prefix and protocol: sets of ports that have none in common."""

    def __init__(self) -> None:
        self._owners: dict[ServiceKey, T] = {}
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._keys: dict[int, ServiceKey] = {}
        """By the first port of each of their ranges."""

    def copy(self) -> _Ranges[T]:
        made = _Ranges[T]()
        made._owners = self._owners.copy()
        made._firsts, made._lasts = self._firsts.copy(), self._lasts.copy()
        made._keys = self._keys.copy()
        return made

    def add(self, key: ServiceKey, owner: T) -> None:
        if key not in self._owners:
            ranges = key.ports.ranges
            # In both lists the order is the same, as no two ranges have a port in common.
            _insert(self._firsts, [each.first for each in ranges])
            _insert(self._lasts, [each.last for each in ranges])
            self._keys |= dict.fromkeys((each.first for each in ranges), key)
        self._owners[key] = owner

    def remove(self, key: ServiceKey) -> None:
        if self._owners.pop(key, None) is None:
            return
        for each in key.ports.ranges:
            at = bisect_left(self._firsts, each.first)
            del self._firsts[at], self._lasts[at], self._keys[each.first]

    def clash(self, key: ServiceKey) -> Clash[T] | None:
        for each in key.ports.ranges:
            # The last range that begins by its end: those before it end before that begins.
            at = bisect_right(self._firsts, each.last) - 1
            if at >= 0 and self._lasts[at] >= each.first:
                other = self._keys[self._firsts[at]]
                if shared := key.shared(other):
                    return Clash(shared, self._owners[other])
        return None


def _insert(numbers: list[int], more: list[int]) -> None:
    if len(more) <= _FEW:
        for each in more:
            insort(numbers, each)
    else:
        numbers += more
        numbers.sort()
