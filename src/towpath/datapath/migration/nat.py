# SPDX-License-Identifier: Apache-2.0
"""Translations of one table copied to another, of another shape or size, while packets use both.

An entry tells all that chooses its set: the address and port that it is translated to, and
the protocol. Tags and hashes stay, since both have the same seeds. What the new table has no
free way for is left behind. It takes ways from the last one down, where the program, which
takes the first, writes least; for it holds a lock that nobody else can take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import step_all
from towpath.datapath.maps.records import converted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.migration.flows import Heir
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_LOW = np.uint64(0xFFFFFFFF)
_PROTOCOL_SHIFT, _ADDRESS_SHIFT = np.uint64(16), np.uint64(24)
_LAST_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries with what their set's head has of them."""

    rows: Array
    life: Array
    forward: Array
    reply: Array

    def only(self, which: Array) -> _Entries:
        return _Entries(self.rows[which], self.life[which], self.forward[which], self.reply[which])


class NatCopy:
    """Copies translations of ``old`` to ``new``; ``heirs`` says what becomes of old handles.

    Only if both translate to the same addresses and ports.
    """

    def __init__(self, old: PinnedMaps, new: LoadedProgram, heirs: Mapping[int, Heir]) -> None:
        self._old, self._new = old, new
        self._heirs = heirs
        self._ways = new.rows("nat_flows")["way"]
        self._heads = new.rows("nat_heads")
        self._seed = int(new.rows("settings")[0]["flow_seed"])

    def run(self) -> int:
        """Copy what the new table doesn't have yet; returns how many entries were written."""
        if not self._alike():
            return 0
        self._extend()
        entries = self._read()
        return self._insert(entries, self._sets(entries.rows))

    def _alike(self) -> bool:
        if not {"nat_states", "nat_flows", "nat_heads"} <= self._old.pinned.keys():
            return False
        was = self._old.rows("nat_states")[0]["config"]
        return bool(was) and was == self._new.rows("nat_states")[0]["config"]

    def _extend(self) -> None:
        """Have flows look for their entries as far as they had to before."""
        with self._old.pinned["nat_heads"].mmap(writable=False) as mapped:
            reach = mapped.array["reach"].copy()
        if len(reach) != len(self._heads):
            # It is of the first set of a flow, which now has others' flows too.
            reach = np.full(len(self._heads), reach.max(initial=0), np.uint8)
        np.maximum(self._heads["reach"], reach, out=self._heads["reach"])

    def _read(self) -> _Entries:
        """Entries of the old table whose backends have heirs, with their new handles."""
        flows, heads = self._old.pinned["nat_flows"], self._old.pinned["nat_heads"]
        with flows.mmap(writable=False) as mapped, heads.mmap(writable=False) as mapped_heads:
            ways, head = mapped.array["way"].copy(), mapped_heads.array.copy()
        sets, at = np.nonzero(ways["ref"])
        rows = converted(ways[sets, at], self._ways.dtype)
        if "backend_port" not in (ways.dtype.names or ()):
            # Of a version whose backends had the VIP's port.
            rows["backend_port"] = rows["vip_port"]
        life = converted(head["life"][sets, at], self._heads["life"].dtype)
        made = _Entries(
            rows, life, _tags(head["forward"])[sets, at], _tags(head["reply"])[sets, at]
        )
        handles = rows["handle"].tolist()
        known = np.array([each in self._heirs for each in handles], bool)
        made.rows["handle"] = [
            self._heirs[each].handle if each in self._heirs else 0 for each in handles
        ]
        return made.only(known)

    def _sets(self, rows: Array) -> Array:
        """Where entries belong in the new table."""
        last = np.array([int(each) & _LAST_WORD for each in self._new.nat_addresses], np.uint64)
        word = rows["port"].astype(np.uint64)
        word |= rows["protocol"].astype(np.uint64) << _PROTOCOL_SHIFT
        word |= last[rows["source"]] << _ADDRESS_SHIFT
        keys = step_all(np.full(len(rows), self._seed, np.uint64), word)
        return (keys & np.uint64(len(self._ways) - 1)).astype(np.int64)

    def _insert(self, entries: _Entries, sets: Array) -> int:
        absent = ~self._present(entries.rows, sets)
        entries, sets = entries.only(absent), sets[absent]
        order = np.argsort(sets, kind="stable")
        entries, sets = entries.only(order), sets[order]
        _, first, at = np.unique(sets, return_index=True, return_inverse=True)
        rank = np.arange(len(sets)) - first[at]
        ways = self._ways.shape[1]
        # Of each set the free ways, the last first, then those in use.
        in_use = self._ways["ref"][sets] != 0
        order_of_ways = np.argsort(in_use * ways + np.arange(ways)[::-1], axis=1, kind="stable")
        fits = rank < (~in_use).sum(axis=1)
        way = order_of_ways[np.arange(len(sets)), rank.clip(max=ways - 1)]
        self._write(entries.only(fits), sets[fits], way[fits])
        return int(fits.sum())

    def _present(self, rows: Array, sets: Array) -> Array:
        there, one = self._ways[sets], rows[:, np.newaxis]
        same = (there["ref"] != 0) & ((there["ref"] & _LOW) == (one["ref"] & _LOW))
        return np.asarray(same.any(axis=1))

    def _write(self, entries: _Entries, sets: Array, way: Array) -> None:
        """In the program's own order: all but what publishes, then that."""
        for name in self._ways.dtype.names or ():
            if name != "ref":
                self._ways[name][sets, way] = entries.rows[name]
        self._heads["life"][sets, way] = entries.life
        _tags(self._heads["forward"])[sets, way] = entries.forward
        _tags(self._heads["reply"])[sets, way] = entries.reply
        self._ways["ref"][sets, way] = entries.rows["ref"]


class _Tags:
    """A field of words as bytes that can be read and stored, a row for each word."""

    def __init__(self, words: Array) -> None:
        self._words = words

    def _at(self, place: tuple[Array, Array]) -> tuple[Array, Array]:
        sets, way = place
        return sets, way.astype(np.uint64) * np.uint64(8)

    def __getitem__(self, place: tuple[Array, Array]) -> Array:
        sets, shift = self._at(place)
        return (self._words[sets] >> shift).astype(np.uint8)

    def __setitem__(self, place: tuple[Array, Array], tags: Array) -> None:
        sets, shift = self._at(place)
        # One set may come several times: each time with another byte.
        np.bitwise_and.at(self._words, sets, ~(np.uint64(0xFF) << shift))
        np.bitwise_or.at(self._words, sets, tags.astype(np.uint64) << shift)


def _tags(words: Array) -> _Tags:
    return _Tags(words)
