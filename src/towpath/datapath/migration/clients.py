# SPDX-License-Identifier: Apache-2.0
"""Clients of services with affinity, copied to another table while packets use both.

Where a client is follows from its address and the index of the service, which is
another one in the other tables: so it is hashed anew. Where a set is full those stay
whose last flow began last. The program may write the same entry at the same time:
see ``struct client`` in ``bpf/abi/flows.h`` for why that costs the entry and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import hash_clients, step_all
from towpath.datapath.maps.records import converted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.migration.flows import Heir
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_SECONDS = 1 << 32  # after which `seen` begins again
_FREE = _SECONDS


class ClientCopy:
    """Copies the clients of ``old`` to ``new``; ``heirs`` says what becomes of old handles.

    ``now``: seconds since boot. Both must have the same seeds.
    """

    def __init__(
        self, old: PinnedMaps, new: LoadedProgram, heirs: Mapping[int, Heir], now: int
    ) -> None:
        self._old = old.pinned.get("clients")
        self._heirs = heirs
        self._ways = new.rows("clients")["way"]
        self._settings = new.rows("settings")[0]
        self._now = now

    def run(self) -> int:
        """Copy what the new table doesn't know as lately; returns how many were written."""
        if self._old is None or not self._heirs:
            return 0
        with self._old.mmap(writable=False) as mapped:
            entries = mapped.array["way"].reshape(-1)
            rows = converted(entries[entries["ref"] != 0], self._ways.dtype)
        rows, v6 = self._with_heirs(rows)
        rows, sets = self._placed(rows, v6)
        order = np.argsort(self._ages(rows), kind="stable")
        return self._insert(*self._refreshed(rows[order], sets[order]))

    def _ages(self, rows: Array) -> Array:
        return (self._now - rows["seen"].astype(np.int64)) % _SECONDS

    def _with_heirs(self, rows: Array) -> tuple[Array, Array]:
        """Entries whose backends have heirs, with their handles and services; who is IPv6."""
        had = (rows["ref"] >> _HALF).astype(np.int64)
        handles = np.array(sorted(self._heirs), np.int64)
        heirs = [self._heirs[int(each)] for each in handles]
        at = np.searchsorted(handles, had).clip(max=len(handles) - 1)
        was = np.array([each.was_service for each in heirs], np.uint32)[at]
        kept = (handles[at] == had) & (was == rows["service"])
        rows, at = rows[kept], at[kept]
        rows["ref"] = np.array([each.handle for each in heirs], np.uint64)[at] << _HALF
        rows["service"] = np.array([each.service for each in heirs], np.uint32)[at]
        versions = np.array([each.key.vip.version for each in heirs])
        return rows, versions[at] == 6  # noqa: PLR2004 - IPv6

    def _placed(self, rows: Array, v6: Array) -> tuple[Array, Array]:
        """Entries with the rest of their hash, and the sets that they belong to."""
        seed, flow_seed = int(self._settings["hash_seed"]), int(self._settings["flow_seed"])
        addresses = np.ascontiguousarray(rows["addr"]["word"]).view(np.uint8).reshape(-1, 16)
        hashes = np.zeros(len(rows), np.uint64)
        for is_v6 in (False, True):
            which = v6 == is_v6
            hashes[which] = hash_clients(addresses[which], seed, is_v6=is_v6)
        keyed = step_all(hashes, np.full(len(rows), flow_seed, np.uint64))
        keyed = step_all(keyed, rows["service"].astype(np.uint64))
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
        at, way = at[newer], way[newer]
        self._ways["ref"][sets[at], way] = rows["ref"][at]
        self._ways["seen"][sets[at], way] = rows["seen"][at]
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
        self._ways["ref"][sets, way] = rows["ref"]
