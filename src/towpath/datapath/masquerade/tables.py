# SPDX-License-Identifier: Apache-2.0
"""The tables that say whose packets are translated, by which devices, and to which addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import FAMILY_V4, FAMILY_V6, Address, family, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.masquerade.program import MasqueradeProgram
    from towpath.kernel.bpf.maps import Map
    from towpath.model.kinds import Prefix

_DEPTH = 32
"""Bits in front of a prefix: the device's index, or the rule's number."""
_IPV6 = 6


class PrefixTable:
    """Prefixes of both families, each of some device or rule, with a number."""

    def __init__(self, v4: Map, v6: Map) -> None:
        self._maps = {4: v4, 6: v6}
        self._there: dict[tuple[int, Prefix], int] | None = None

    @property
    def any(self) -> bool:
        """Whether there are some, of an earlier process too."""
        if self._there is not None:
            return bool(self._there)
        return any(list(table.keys()) for table in self._maps.values())

    def replace(self, wanted: Mapping[tuple[int, Prefix], int]) -> None:
        """Have these and no others. What is new comes first, so that none is missing between.

        KernelError: there is no room.
        """
        there, self._there = self._there, None  # known again when all is done
        if there is None:
            there = {}
            self._forget_others(wanted)
        for (of, prefix), number in wanted.items():
            if there.get((of, prefix)) != number:
                self._maps[prefix.version].update(self._key(of, prefix), number)
        for of, prefix in there:
            if (of, prefix) not in wanted:
                self._maps[prefix.version].delete(self._key(of, prefix), missing_ok=True)
        self._there = dict(wanted)

    def _forget_others(self, wanted: Mapping[tuple[int, Prefix], int]) -> None:
        """Remove what an earlier process has left and isn't wanted any more."""
        keep = {(prefix.version, self._key(of, prefix).tobytes()) for of, prefix in wanted}
        for version, table in self._maps.items():
            for key in list(table.keys()):
                if (version, key.tobytes()) not in keep:
                    table.delete(key, missing_ok=True)

    def _key(self, of: int, prefix: Prefix) -> np.ndarray[Any, Any]:
        key = np.zeros((), self._maps[prefix.version].key_dtype)
        key["bits"], key["of"] = _DEPTH + prefix.prefixlen, of
        address = prefix.network_address
        if prefix.version == _IPV6:
            key["address"]["word"] = np.frombuffer(pack(address), ">u4")
        else:
            key["address"] = int(address)
        return key


class Sources:
    """The node's addresses by their numbers.

    An address that has gone takes its flows with it: its number gets another generation, which
    those entries don't have.
    """

    def __init__(self, program: MasqueradeProgram) -> None:
        self._numbers = program.maps["masq_numbers"]
        self._sources = program.maps["masq_sources"]
        self._half = self._sources.max_entries // 2
        self.none = program.constant("masquerade_limits", "MASQ_NO_SOURCE")
        """Stands for no number."""
        self.by_address: dict[Address, int] = {
            unpack(key["address"].tobytes(), int(key["family"])): int(number)
            for key, number in self._numbers.items()
        }
        self._next = {FAMILY_V4: 0, FAMILY_V6: self._half}
        self.left_out: tuple[Address, ...] = ()
        """Addresses that there is no number for: what would be translated to them is dropped."""

    def sync(self, wanted: Iterable[Address]) -> None:
        """Have these, the first ones if there are too many, and no others."""
        kept = self._first(wanted)
        for address in [each for each in self.by_address if each not in kept]:
            self._retire(address)
        for address in kept:
            if address not in self.by_address:
                self._add(address)

    def _first(self, wanted: Iterable[Address]) -> dict[Address, None]:
        kept: dict[Address, None] = {}
        room = {FAMILY_V4: self._half, FAMILY_V6: self._half}
        left = []
        for address in dict.fromkeys(wanted):
            if room[family(address)]:
                kept[address] = None
                room[family(address)] -= 1
            else:
                left.append(address)
        self.left_out = tuple(left)
        return kept

    def _retire(self, address: Address) -> None:
        number = self.by_address.pop(address)
        # First no new flows get it, then those that have it are over.
        self._numbers.delete(self._key(address), missing_ok=True)
        source = self._sources.lookup(number)
        source["generation"] = (int(source["generation"]) + 1) % (1 << 16)
        source["family"] = 0
        self._sources.update(number, source)

    def _add(self, address: Address) -> None:
        number = self._free(family(address))
        source = self._sources.lookup(number)
        source["address"]["word"] = np.frombuffer(pack(address), ">u4")
        source["family"] = family(address)
        self._sources.update(number, source)
        self._numbers.update(self._key(address), number)
        self.by_address[address] = number

    def _free(self, of_family: int) -> int:
        """A number that is free, the one that has been for longest."""
        taken = set(self.by_address.values())
        begin = 0 if of_family == FAMILY_V4 else self._half
        for step in range(self._half):
            number = begin + (self._next[of_family] - begin + step) % self._half
            if number not in taken:
                self._next[of_family] = number + 1
                return number
        raise AssertionError("there are as many numbers as addresses are kept")

    def _key(self, address: Address) -> np.ndarray[Any, Any]:
        key = np.zeros((), self._numbers.key_dtype)
        key["address"]["word"] = np.frombuffer(pack(address), ">u4")
        key["family"] = family(address)
        return key


def read_counts(program: MasqueradeProgram) -> dict[str, dict[str, int]]:
    """Packets by program and verdict, those of all CPUs together, and what was bound."""
    verdicts = program.names("masquerade_verdict", "MASQ_", "MASQ_MAX")
    programs = program.names("masquerade_program", "MASQ_", "MASQ_PROGRAMS")
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(programs):
        counts = program.maps["masq_counts"].lookup(number)
        packets = counts["packets"].sum(axis=0)
        found[name] = {verdict: int(packets[i]) for i, verdict in enumerate(verdicts)}
        found[name]["bytes"] = int(counts["bytes"].sum())
        found[name]["bound"] = int(counts["bound"].sum())
    return found
