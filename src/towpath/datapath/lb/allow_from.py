# SPDX-License-Identifier: Apache-2.0
"""Sets of source prefixes: whom services are for.

A set is written whole before a service names it, never changed after that, and
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
        self._sets: dict[int, tuple[Prefix, ...]] = {}
        self._numbers: dict[tuple[Prefix, ...], int] = {}
        self._users: Counter[int] = Counter()
        self._kept = 0
        """Prefixes in the map, those that rest too."""
        self._retired: set[int] = set()

    @property
    def in_use(self) -> Mapping[tuple[Prefix, ...], int]:
        """How many services use each list."""
        return {prefixes: self._users[number] for prefixes, number in self._numbers.items()}

    def prefixes(self, number: int) -> tuple[Prefix, ...] | None:
        """Return the prefixes of a set that is in use, None for everyone."""
        return self._sets.get(number)

    def take(self, prefixes: tuple[Prefix, ...] | None) -> int:
        """Return the number of a set of these, which is there when this returns.

        Each take is to be followed by a `leave`. CapacityError: there is no room, and no
        prefix was stored.
        """
        if prefixes is None:
            return EVERYONE
        number = self._numbers.get(prefixes)
        if number is None:
            number = self._store(prefixes)
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
        prefixes = self._sets.pop(number)
        if self._numbers.get(prefixes) == number:
            del self._numbers[prefixes]
        self._rest(number, prefixes)

    def adopt(self, used: Iterable[int]) -> dict[int, tuple[Prefix, ...]]:
        """Take over the sets that services name, as often as one does; the others rest.

        Returns their prefixes by number. A number that no prefix has means that nobody may.
        """
        keys, _ = self._trie.snapshot()
        found: dict[int, list[Prefix]] = {}
        for key in keys:
            found.setdefault(int(key["set"]), []).append(self._prefix(key))
        self._users = Counter(number for number in used if number != EVERYONE)
        for number in self._users:
            prefixes = tuple(sorted(found.pop(number, ()), key=_order))
            self._sets[number] = prefixes
            self._numbers[prefixes] = number
            self._kept += len(prefixes)
        for number, left in found.items():
            self._kept += len(left)
            self._rest(number, tuple(left))
        return dict(self._sets)

    def _store(self, prefixes: tuple[Prefix, ...]) -> int:
        if self._kept + len(prefixes) > self.limit:
            self._reclaimer.reclaim()
        if self._kept + len(prefixes) > self.limit:
            raise CapacityError("sources", self._kept + len(prefixes), self.limit, "sources")
        taken = self._sets.keys() | self._retired
        number = next(n for n in count(1) if n not in taken)
        keys = self._keys(number, prefixes)
        self._trie.update_batch(keys, np.full(len(keys), _PRESENT, np.uint32))
        self._kept += len(prefixes)
        self._sets[number] = prefixes
        self._numbers[prefixes] = number
        return number

    def _rest(self, number: int, prefixes: tuple[Prefix, ...]) -> None:
        self._retired.add(number)
        self._reclaimer.retire(lambda: self._remove(number, prefixes))

    def _remove(self, number: int, prefixes: tuple[Prefix, ...]) -> None:
        self._trie.delete_batch(self._keys(number, prefixes))
        self._kept -= len(prefixes)
        self._retired.discard(number)

    def _keys(self, number: int, prefixes: tuple[Prefix, ...]) -> Array:
        keys = np.zeros(len(prefixes), self._type)
        for key, prefix in zip(keys, prefixes, strict=True):
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


def _order(prefix: Prefix) -> tuple[int, int]:
    return prefix.version, int(prefix.network_address)
