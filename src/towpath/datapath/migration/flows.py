# SPDX-License-Identifier: Apache-2.0
"""Flows of one flow table copied to another, of another shape or size, while packets use both.

An entry doesn't tell its whole hash, which says in which set it is: of the low half
only as many bits as the number of its set has. A table with no more sets needs no
more. For one with more, the hash is made anew from client, VIP and ports; where a
service has many ports or addresses, which an entry doesn't tell, the entry is put
into each set that it could belong to, as many as the table is larger. The program
finds one of them, and the others are never seen and age.

Where a set is full those that were seen last stay. The program may write the same
entry at the same time, in the old table while it is read or in the new one while it is
written: see ``struct flow`` in ``bpf/abi/flows.h`` for why that costs the entry and no more.

A flow that was copied while packets still used the old table may have been given another
backend there since. So the next copying stores that one, unless the new program has learnt the
flow itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import hash_flows, step_all
from towpath.datapath.flows.flow_table import SERVICE
from towpath.datapath.lb.lookup import pack_key
from towpath.datapath.maps.records import converted
from towpath.datapath.migration.written import Written, ages_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.program.program import LoadedProgram
    from towpath.model.service import ServiceKey

    Array = np.ndarray[Any, Any]

_LOW = 0xFFFFFFFF
_HALF = 32
_TAG_SHIFT = 24
_CHUNK = 1 << 16
_FREE = 1 << 16
"""Older than any."""


@dataclass(frozen=True, slots=True)
class Heir:
    """What a handle of the one table is in the other."""

    handle: int
    service: int
    key: ServiceKey
    was_service: int
    backend: Address


@dataclass(frozen=True, slots=True)
class _Known:
    """Entries, the most lately seen first, and what is known of the low half of their hashes."""

    rows: Array
    """As the new table has them."""
    sets: Array
    ages: Array
    """In steps of `seen`."""

    def only(self, which: Array | slice) -> _Known:
        return _Known(self.rows[which], self.sets[which], self.ages[which])


class FlowCopy:
    """Copies the flows of ``old`` to ``new``; ``heirs`` says what becomes of old handles.

    Both must have the same seeds.
    """

    def __init__(self, old: PinnedMaps, new: LoadedProgram, heirs: Mapping[int, Heir]) -> None:
        self._old = old
        self._heirs = heirs
        self._ways = new.rows("flows")["way"]
        self._tags = _tags(new.rows("flow_tags"))
        self._settings = new.rows("settings")[0]
        self._shift = new.constant("flow_limits", "FLOW_SEEN_SHIFT")
        self._written = Written(self._ways["ref"])
        self._now = 0

    def run(self, now: int) -> int:
        """Copy what the new table doesn't have yet; returns how many entries were written.

        ``now``: jiffies, 32 bits.
        """
        self._now = now >> self._shift
        return sum(
            self._insert(known.only(slice(at, at + _CHUNK)))
            for known in self._placed(self._read())
            for at in range(0, len(known.rows), _CHUNK)
        )

    def _read(self) -> _Known:
        """Entries of the old table that packets find and whose backends have heirs."""
        old, tags = self._old.pinned["flows"], self._old.pinned["flow_tags"]
        with old.mmap(writable=False) as mapped, tags.mmap(writable=False) as mapped_tags:
            ways, tags_of = mapped.array["way"].copy(), _tags(mapped_tags.array.copy())
        tags_of = tags_of[:, : ways.shape[1]]
        sets, at = np.nonzero((ways["ref"] != 0) & (_tag(ways["ref"]) == tags_of))
        made = converted(ways[sets, at], self._ways.dtype)
        known = _Known(made, sets.astype(np.uint64), self._ages(made))
        known = known.only(self._give_heirs(known.rows))
        return known.only(np.argsort(known.ages, kind="stable"))

    def _give_heirs(self, rows: Array) -> Array:
        """Store new handles and services in entries; returns which entries have them.

        What else `service` says, the flow's state, stays.
        """
        handles = np.array(sorted(self._heirs), np.uint64)
        if not len(handles):
            return np.zeros(len(rows), bool)
        heirs = [self._heirs[int(each)] for each in handles]
        had = rows["ref"] >> np.uint64(_HALF)
        at = np.searchsorted(handles, had).clip(max=len(handles) - 1)
        was = np.array([each.was_service for each in heirs], np.uint32)[at]
        index, flags = rows["service"] & np.uint32(SERVICE), rows["service"] & ~np.uint32(SERVICE)
        has_one = (handles[at] == had) & (was == index)
        new = np.array([each.handle for each in heirs], np.uint64)[at]
        rows["ref"] = new << np.uint64(_HALF) | rows["ref"] & np.uint64(_LOW)
        rows["service"] = np.array([each.service for each in heirs], np.uint32)[at] | flags
        return np.asarray(has_one)

    # ---- Where they belong ------------------------------------------------------------------

    def _placed(self, known: _Known) -> Iterator[_Known]:
        """The same with their sets in the new table, entries that have several in turn."""
        sets, had = len(self._ways), self._old.pinned["flows"].max_entries
        if sets <= had:
            yield _Known(known.rows, known.sets & np.uint64(sets - 1), known.ages)
            return
        yield from self._rehashed(known)
        exact = np.isin(_service(known.rows), list(self._exact()))
        others = known.only(~exact)
        for copy in range(sets // had):
            yield _Known(others.rows, others.sets + np.uint64(copy * had), others.ages)

    def _exact(self) -> dict[int, Heir]:
        """Services of one port at one address, each by any of its backends."""
        return {each.service: each for each in self._heirs.values() if each.key.exact}

    def _rehashed(self, known: _Known) -> Iterator[_Known]:
        """Entries of which everything that is hashed is known, service by service."""
        if not len(known.rows):
            return
        order = np.argsort(_service(known.rows), kind="stable")
        services, first = np.unique(_service(known.rows)[order], return_index=True)
        exact = self._exact()
        for service, at in zip(services.tolist(), np.split(order, first[1:]), strict=True):
            if service in exact:
                mine = known.only(at)
                keyed = self._keyed(mine.rows, exact[service].key)
                sure = keyed >> np.uint64(_HALF) == mine.rows["ref"] & np.uint64(_LOW)
                sets = keyed & np.uint64(len(self._ways) - 1)
                yield _Known(mine.rows, sets, mine.ages).only(sure)

    def _keyed(self, rows: Array, key: ServiceKey) -> Array:
        """The keyed hash of each entry of a service, of which `ref` has the high half."""
        packed = pack_key(key)
        keys = np.zeros((len(rows), 40), np.uint8)
        keys[:, :16] = np.ascontiguousarray(rows["saddr"]["word"]).view(np.uint8).reshape(-1, 16)
        keys[:, 16:32] = np.frombuffer(packed[:16], np.uint8)
        keys[:, 32:34] = np.ascontiguousarray(rows["sport"]).view(np.uint8).reshape(-1, 2)
        keys[:, 34:38] = np.frombuffer(packed[16:20], np.uint8)
        seed, flow_seed = int(self._settings["hash_seed"]), int(self._settings["flow_seed"])
        hashes = hash_flows(keys, seed, is_v6=key.vip.version == 6)  # noqa: PLR2004 - IPv6
        return step_all(hashes, np.full(len(keys), flow_seed, np.uint64))

    # ---- Into the table that is in use ------------------------------------------------------

    def _insert(self, known: _Known) -> int:
        """Write entries that aren't there, to free ways or in place of those longer unseen."""
        known = known.only(~self._refresh(known))
        order = np.argsort(known.sets, kind="stable")
        known = known.only(order)
        _, first, at = np.unique(known.sets, return_index=True, return_inverse=True)
        rank = np.arange(len(order)) - first[at]
        per_set = self._ways.shape[1]
        known, rank = known.only(rank < per_set), rank[rank < per_set]
        there = self._ways[known.sets]
        ages = np.where(there["ref"] == 0, _FREE, self._ages(there))
        each = np.arange(len(rank))
        way = np.argsort(-ages, axis=1, kind="stable")[each, rank]
        younger = ages[each, way] > known.ages
        known, way = known.only(younger), way[younger]
        self._write(known.rows, known.sets.astype(np.int64), way)
        return len(way)

    def _refresh(self, known: _Known) -> Array:
        """Note what is new of those that are there; returns which ones these are."""
        there = self._ways[known.sets]
        same = self._same(there, known.rows)
        at, way = np.nonzero(same)
        sets, rows = known.sets[at].astype(np.int64), known.rows[at]
        later = known.ages[at] <= self._ages(there[at, way])
        self._ways["seen"][sets[later], way[later]] = rows["seen"][later]
        mine = self._written.stands(sets, way)
        self._written.store(sets[mine], way[mine], rows["ref"][mine])
        mine &= later
        self._ways["service"][sets[mine], way[mine]] = rows["service"][mine]
        return np.asarray(same.any(axis=1))

    def _same(self, there: Array, rows: Array) -> Array:
        rows = rows[:, np.newaxis]
        same = (there["ref"] & np.uint64(_LOW)) == (rows["ref"] & np.uint64(_LOW))
        same &= (there["ref"] != 0) & (_service(there) == _service(rows))
        same &= there["sport"] == rows["sport"]
        same &= (there["saddr"]["word"] == rows["saddr"]["word"]).all(axis=2)
        return np.asarray(same)

    def _ages(self, rows: Array) -> Array:
        """In steps of `seen`."""
        return ages_of(rows["seen"], self._now)

    def _write(self, rows: Array, sets: Array, way: Array) -> None:
        """In the program's own order: unpublish, rewrite, publish."""
        ways = self._ways
        ways["ref"][sets, way] = 0
        for name in ways.dtype.names or ():
            if name != "ref":
                ways[name][sets, way] = rows[name]
        self._written.store(sets, way, rows["ref"])
        self._tags[sets, way] = _tag(rows["ref"])


def _service(rows: Array) -> Array:
    """The index of each entry's service."""
    return np.asarray(rows["service"] & np.uint32(SERVICE))


def _tags(words: Array) -> Array:
    """The words of tags as bytes, a row for each set, however many of them are ways'."""
    return words.view(np.uint8).reshape(len(words), -1)


def _tag(refs: Array) -> Array:
    """The byte that a set's word of tags has for an entry."""
    high = (refs & np.uint64(_LOW)) >> np.uint64(_TAG_SHIFT)
    return np.where(high, high, 1).astype(np.uint8)
