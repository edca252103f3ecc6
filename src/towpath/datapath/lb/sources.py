# SPDX-License-Identifier: Apache-2.0
"""Sets of source prefixes: whom services are for, and where new flows of some sources go.

A prefix holds a number: 1 in a set of those that may, the row of a route in a set of routes. A set
is written whole before a service names it, never changed after that, and
taken away when no packet can be looking into it any more. Services with equal lists
share one. A process that dies leaves sets that no service names; the next one
removes them.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from towpath.datapath.address import FAMILY_V4, family, pack, unpack
from towpath.datapath.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.lb.grace import Reclaimer
    from towpath.model.kinds import Prefix

    Array = np.ndarray[Any, Any]
    Entries = tuple[tuple[Prefix, int], ...]
    """Prefixes, and what they hold."""

EVERYONE = 0
"""The number that means no set at all."""
_PRESENT = 1
_V4_BITS = 96
"""Zeros before an IPv4 address in the 16 bytes that it has."""


class Trie(Protocol):
    """What is used of the kernel's map."""

    def snapshot(self) -> tuple[Array, Array]:
        """Return all keys, and their values."""

    def update_batch(self, keys: Array, values: Array) -> None:
        """Store keys."""

    def delete_batch(self, keys: Array) -> None:
        """Remove keys."""


class SourceSets:
    """``sources`` of ``bpf/lb/maps.h``.

    ``key_type`` is the dtype of ``struct source_key``, ``set_bits`` is SOURCE_BITS, the bits
    before the address; ``limit`` is how many prefixes there is room for.
    """

    def __init__(
        self, trie: Trie, key_type: np.dtype[Any], set_bits: int, limit: int, reclaimer: Reclaimer
    ) -> None:
        self._trie = trie
        self._type = key_type
        self._bits = set_bits
        self.limit = limit
        self._reclaimer = reclaimer
        self._sets: dict[int, Entries] = {}
        self._numbers: dict[Entries, int] = {}
        self._users: Counter[int] = Counter()
        self._kept = 0
        """Prefixes in the map, those that rest too."""
        self._retired: set[int] = set()

    @property
    def in_use(self) -> Mapping[Entries, int]:
        """How many services use each set."""
        return {entries: self._users[number] for entries, number in self._numbers.items()}

    def prefixes(self, number: int) -> tuple[Prefix, ...] | None:
        """Return the prefixes of a set that is in use, None for everyone."""
        entries = self._sets.get(number)
        return None if entries is None else tuple(prefix for prefix, _ in entries)

    def rows(self, number: int) -> dict[Prefix, int]:
        """Return what the prefixes of a set that is in use hold."""
        return dict(self._sets.get(number, ()))

    def take(self, prefixes: tuple[Prefix, ...] | None) -> int:
        """Return the number of a set of these, which is there when this returns.

        Each take is to be followed by a `leave`. CapacityError: there is no room, and no
        prefix was stored.
        """
        return EVERYONE if prefixes is None else self._take(present(prefixes))

    def take_rows(self, rows: Mapping[Prefix, int], most: int) -> int:
        """The same of prefixes that hold rows; its number is at most ``most``. 0: of none."""
        if not rows:
            return EVERYONE
        return self._take(tuple(sorted(rows.items(), key=_order)), most)

    def _take(self, entries: Entries, most: int | None = None) -> int:
        number = self._numbers.get(entries)
        if number is None:
            number = self._store(entries, most)
        self._users[number] += 1
        return number

    def leave(self, number: int) -> None:
        """Need a set no more. It goes with the last that needed it, once no packet reads it."""
        if number == EVERYONE:
            return
        self._users[number] -= 1
        if self._users[number]:
            return
        del self._users[number]
        entries = self._sets.pop(number)
        if self._numbers.get(entries) == number:
            del self._numbers[entries]
        self._rest(number, entries)

    def adopt(self, used: Iterable[int]) -> dict[int, tuple[Prefix, ...]]:
        """Take over the sets that services name, as often as one does; the others rest.

        Returns their prefixes by number. A number that no prefix has means that nobody may.
        """
        found: dict[int, list[tuple[Prefix, int]]] = {}
        for key, value in zip(*self._trie.snapshot(), strict=True):
            found.setdefault(int(key["set"]), []).append((self._prefix(key), int(value)))
        self._users = Counter(number for number in used if number != EVERYONE)
        for number in self._users:
            entries = tuple(sorted(found.pop(number, ()), key=_order))
            self._sets[number] = entries
            self._numbers[entries] = number
            self._kept += len(entries)
        for number, left in found.items():
            self._kept += len(left)
            self._rest(number, tuple(left))
        return {number: tuple(prefix for prefix, _ in each) for number, each in self._sets.items()}

    def _store(self, entries: Entries, most: int | None) -> int:
        if self._kept + len(entries) > self.limit:
            self._reclaimer.reclaim()
        if self._kept + len(entries) > self.limit:
            raise CapacityError("sources", self._kept + len(entries), self.limit, "sources")
        taken = self._sets.keys() | self._retired
        number = next(n for n in count(1) if n not in taken)
        if most is not None and number > most:
            raise CapacityError("sets of sources", number, most)
        keys = self._keys(number, entries)
        self._trie.update_batch(keys, np.array([value for _, value in entries], np.uint32))
        self._kept += len(entries)
        self._sets[number] = entries
        self._numbers[entries] = number
        return number

    def _rest(self, number: int, entries: Entries) -> None:
        self._retired.add(number)
        self._reclaimer.retire(lambda: self._remove(number, entries))

    def _remove(self, number: int, entries: Entries) -> None:
        self._trie.delete_batch(self._keys(number, entries))
        self._kept -= len(entries)
        self._retired.discard(number)

    def _keys(self, number: int, entries: Entries) -> Array:
        keys = np.zeros(len(entries), self._type)
        for key, (prefix, _) in zip(keys, entries, strict=True):
            before = _V4_BITS if family(prefix.network_address) == FAMILY_V4 else 0
            key["prefixlen"] = self._bits + before + prefix.prefixlen
            key["set"] = number
            key["family"] = family(prefix.network_address)
            key["addr"]["word"] = np.frombuffer(pack(prefix.network_address), ">u4")
        return keys

    def _prefix(self, key: Any) -> Prefix:
        address = unpack(key["addr"].tobytes(), int(key["family"]))
        before = _V4_BITS if int(key["family"]) == FAMILY_V4 else 0
        return ip_network((address, int(key["prefixlen"]) - self._bits - before))


def present(prefixes: Iterable[Prefix]) -> Entries:
    """Return what a set of those that may has."""
    return tuple((prefix, _PRESENT) for prefix in prefixes)


def _order(entry: tuple[Prefix, int]) -> tuple[int, int, int]:
    prefix, _ = entry
    return prefix.version, int(prefix.network_address), prefix.prefixlen
