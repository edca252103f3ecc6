# SPDX-License-Identifier: Apache-2.0
"""Finds which services are for the same packets, however many services there are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from towpath.layered import Draft, Layered

if TYPE_CHECKING:
    from typing import TypeAlias

    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Protocol, Scope, ServiceKey

    _Space: TypeAlias = tuple[Address | Prefix, Protocol, Scope]

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
        self._exact: Draft[ServiceKey, T] = Layered[Any, T]().draft()
        self._others: Draft[_Space, _Ranges[T]] = Layered[Any, _Ranges[T]]().draft()
        self._own: set[_Space] = set()
        """Whose ranges no other index has."""

    def copy(self) -> KeyIndex[T]:
        """Return an index that can be changed by itself, while this one stays as it is."""
        made = KeyIndex[T]()
        made._exact = self._exact.done().draft()
        made._others = self._others.done().draft()
        self._own = set()
        return made

    def add(self, key: ServiceKey, owner: T) -> None:
        """Note a key that has no clash. One that is there gets the new owner."""
        if key.exact:
            self._exact[key] = owner
        else:
            self._ranges(key.space).add(key, owner)

    def remove(self, key: ServiceKey) -> None:
        """Forget a key, if it is there."""
        if key.exact:
            self._exact.pop(key)
        elif key.space in self._others:
            self._ranges(key.space).remove(key)

    def clash(self, key: ServiceKey) -> Clash[T] | None:
        """Return what a key would have in common with one that is there, if anything."""
        if key.exact:
            owner = self._exact.get(key)
            return None if owner is None else Clash(key, owner)
        ranges = self._others.get(key.space)
        return ranges.clash(key) if ranges else None

    def _ranges(self, space: _Space) -> _Ranges[T]:
        """Those of one address and protocol, to be changed."""
        if space not in self._own:
            found = self._others.get(space)
            self._others[space] = found.copy() if found else _Ranges()
            self._own.add(space)
        made = self._others.get(space)
        assert made is not None  # noqa: S101 - from just before
        return made


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
