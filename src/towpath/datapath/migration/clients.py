# SPDX-License-Identifier: Apache-2.0
"""Clients of services with affinity, copied to another table while packets use both.

Where a client is follows from its address and the index of the service, which is
another one in the other tables: so it is hashed anew. An entry whose old hash isn't that of
its fields is left behind: it was written while it was read, and would give its client the
backend of another. Where a set is full those stay whose last flow began last. The program may
write the new table's entries at the same time: see ``struct client`` in ``bpf/abi/flows.h`` for
why that costs the entry and no more.

A client that was copied while packets still used the old table may have been given another
backend there since: see :mod:`towpath.datapath.migration.flows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import hash_clients, step_all
from towpath.datapath.maps.records import converted
from towpath.datapath.migration.written import Written, ages_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.migration.flows import Heir
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FREE = 1 << 32
"""Older than any."""


class ClientCopy:
    """Copies the clients of ``old`` to ``new``; ``heirs`` says what becomes of old handles.

    Both must have the same seeds.
    """

    def __init__(self, old: PinnedMaps, new: LoadedProgram, heirs: Mapping[int, Heir]) -> None:
        self._old = old.pinned.get("clients")
        self._heirs = heirs
        self._ways = new.rows("clients")["way"]
        self._settings = new.rows("settings")[0]
        self._written = Written(self._ways["ref"])
        self._now = 0

    def run(self, now: int) -> int:
        """Copy what the new table doesn't know as lately; returns how many were written.

        ``now``: seconds since boot.
        """
        if self._old is None or not self._heirs:
            return 0
        self._now = now
        with self._old.mmap(writable=False) as mapped:
            entries = mapped.array["way"].reshape(-1).copy()
        rows = converted(entries[entries["ref"] != 0], self._ways.dtype)
        rows, sets = self._placed(*self._with_heirs(rows))
        order = np.argsort(self._ages(rows), kind="stable")
        return self._insert(*self._refreshed(rows[order], sets[order]))

    def _ages(self, rows: Array) -> Array:
        return ages_of(rows["seen"], self._now)

    def _with_heirs(self, rows: Array) -> tuple[Array, Array]:
        """Whole entries whose backends have heirs, with these; and their clients' hashes."""
        had = (rows["ref"] >> _HALF).astype(np.int64)
        handles = np.array(sorted(self._heirs), np.int64)
        heirs = [self._heirs[int(each)] for each in handles]
        at = np.searchsorted(handles, had).clip(max=len(handles) - 1)
        versions = np.array([each.key.vip.version for each in heirs])
        hashes = self._hashes(rows, versions[at] == 6)  # noqa: PLR2004 - IPv6
        was = np.array([each.was_service for each in heirs], np.uint32)[at]
        kept = (handles[at] == had) & (was == rows["service"])
        kept &= _keyed(hashes, rows["service"]) >> _HALF == rows["ref"] & _LOW
        rows, at = rows[kept], at[kept]
        rows["ref"] = np.array([each.handle for each in heirs], np.uint64)[at] << _HALF
        rows["service"] = np.array([each.service for each in heirs], np.uint32)[at]
        return rows, hashes[kept]

    def _hashes(self, rows: Array, v6: Array) -> Array:
        """Of each client, keyed, before its service goes in."""
        seed, flow_seed = int(self._settings["hash_seed"]), int(self._settings["flow_seed"])
        addresses = np.ascontiguousarray(rows["addr"]["word"]).view(np.uint8).reshape(-1, 16)
        hashes = np.zeros(len(rows), np.uint64)
        for is_v6 in (False, True):
            which = v6 == is_v6
            hashes[which] = hash_clients(addresses[which], seed, is_v6=is_v6)
        return step_all(hashes, np.full(len(rows), flow_seed, np.uint64))

    def _placed(self, rows: Array, hashes: Array) -> tuple[Array, Array]:
        """Entries with the rest of their hash, and the sets that they belong to."""
        keyed = _keyed(hashes, rows["service"])
        rows["ref"] |= keyed >> _HALF
        return rows, (keyed & np.uint64(len(self._ways) - 1)).astype(np.int64)

    def _refreshed(self, rows: Array, sets: Array) -> tuple[Array, Array]:
        """Those that aren't there; of the others it is noted what is newer."""
        there, each = self._ways[sets], rows[:, np.newaxis]
        same = (there["ref"] != 0) & ((there["ref"] ^ each["ref"]) & _LOW == 0)
        same &= there["service"] == each["service"]
        same &= (there["addr"]["word"] == each["addr"]["word"]).all(axis=2)
        at, way = np.nonzero(same)
        newer = self._ages(rows[at]) < self._ages(there[at, way])
        newer |= self._written.stands(sets[at], way)
        at, way = at[newer], way[newer]
        self._ways["seen"][sets[at], way] = rows["seen"][at]
        self._written.store(sets[at], way, rows["ref"][at])
        absent = ~same.any(axis=1)
        return rows[absent], sets[absent]

    def _insert(self, rows: Array, sets: Array) -> int:
        """Write entries to free ways, or in place of those longer unseen."""
        order = np.argsort(sets, kind="stable")
        rows, sets = rows[order], sets[order]
        _, first, at = np.unique(sets, return_index=True, return_inverse=True)
        rank = np.arange(len(sets)) - first[at]
        fits = rank < self._ways.shape[1]
        rows, sets, rank = rows[fits], sets[fits], rank[fits]
        there = self._ways[sets]
        ages = np.where(there["ref"] == 0, _FREE, self._ages(there))
        each = np.arange(len(rank))
        way = np.argsort(-ages, axis=1, kind="stable")[each, rank]
        younger = ages[each, way] > self._ages(rows)
        self._write(rows[younger], sets[younger], way[younger])
        return int(younger.sum())

    def _write(self, rows: Array, sets: Array, way: Array) -> None:
        """In the program's own order: unpublish, rewrite, publish."""
        self._ways["ref"][sets, way] = 0
        for name in self._ways.dtype.names or ():
            if name != "ref":
                self._ways[name][sets, way] = rows[name]
        self._written.store(sets, way, rows["ref"])


def _keyed(hashes: Array, services: Array) -> Array:
    return step_all(hashes, services.astype(np.uint64))
