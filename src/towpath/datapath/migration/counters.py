# SPDX-License-Identifier: Apache-2.0
"""Counters of one set of tables carried on in another.

Twice: before packets are counted in the new ones, and after the last was counted in
the old ones. The second time the program counts, too, without any lock: it may then
undo what is added to the very counter that it is adding to, or have one of its own
packets not counted. Both are rarer than anything that counters are read for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.migration.flows import Heir
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_FIRST_DROP = "VERDICT_DROP_NO_BACKEND"


class CounterCopy:
    """Adds to ``new`` what ``old`` has counted since the last time.

    ``services``: new indexes by old ones; ``handles``: what became of old handles.
    """

    def __init__(
        self,
        old: PinnedMaps,
        new: LoadedProgram,
        services: Mapping[int, int],
        handles: Mapping[int, Heir],
    ) -> None:
        self._old, self._new = old, new
        self._services = services
        self._handles = handles
        was_bits, bits = (each.constant("handle_bits", "HANDLE_INDEX_BITS") for each in (old, new))
        self._backends = {
            handle & (1 << was_bits) - 1: heir.handle & (1 << bits) - 1
            for handle, heir in handles.items()
        }
        names = new.btf.enum("verdict").__members__
        self._verdicts = {
            was: int(names[name])
            for was, name in old.names("verdict").items()
            if name in names and name != "VERDICT_MAX"
        }
        self._done: dict[str, Array] = {}

    def run(self) -> None:
        """Copy all that has been counted, or what has come to it."""
        self._copy("verdict_cpus", "packets", self._verdicts.items(), of_records=False)
        for name, columns in (
            ("service_cpus", self._services),
            ("reply_cpus", self._services),
            ("quic_cpus", self._services),
            ("backend_cpus", self._backends),
            ("backend_flows", self._backends),
        ):
            if name in self._old.pinned:
                dtype = self._new.maps[name].value_dtype
                # Not next hops, which are asked for again, nor what is counted by verdict.
                fields = [each for each in dtype.names or () if dtype[each].kind == "u"]
                for field in fields if dtype.names else [""]:
                    self._copy(name, field, columns.items(), of_records=True)
        self._copy_service_drops()
        self._copy_backend_drops()
        self._copy_refusals()
        self._copy_unwrapped()

    def _copy(
        self, name: str, field: str, places: Iterable[tuple[int, int]], *, of_records: bool
    ) -> None:
        """Copy one counter of a table from old to new places: its records', or an array's."""
        cpus = self._new.layout.cpus
        with self._old.maps[name].mmap() as mapped:
            before, rows = mapped.array, self._new.rows(name)
            if of_records:
                before, rows = before.reshape(cpus, -1), rows.reshape(cpus, -1)
            if field:
                before, rows = before[field], rows[field]
            self._add(f"{name}.{field}", before, rows, places)

    def _add(
        self, name: str, before: Array, rows: Array, places: Iterable[tuple[int, int]]
    ) -> None:
        within = [
            (was, now)
            for was, now in places
            if 0 <= was < before.shape[1] and 0 <= now < rows.shape[1]
        ]
        was, now = [each for each, _ in within], [each for _, each in within]
        counted = before[:, was]
        more = counted - self._done.get(name, np.uint64(0))
        rows[:, now] += more
        self._done[name] = counted

    def _copy_service_drops(self) -> None:
        """Of each service by reason: places are verdicts from the first drop on."""
        was_first, first = (
            each.constant("verdict", _FIRST_DROP) for each in (self._old, self._new)
        )
        reasons = [(was - was_first, now - first) for was, now in self._verdicts.items()]
        cpus = self._new.layout.cpus
        with self._old.maps["service_cpus"].mmap() as mapped:
            before = mapped.array.reshape(cpus, -1)["dropped"]
            rows = self._new.rows("service_cpus").reshape(cpus, -1)["dropped"]
            for was, now in self._services.items():
                self._add(f"dropped {was}", before[:, was], rows[:, now], reasons)

    def _copy_backend_drops(self) -> None:
        table = self._new.maps["backend_drops"]
        for key, packets in self._old.maps["backend_drops"].items():
            name = f"backend {key}"
            heir = self._handles.get(int(key["handle"]))
            verdict = self._verdicts.get(int(key["verdict"]))
            if heir is None or verdict is None:
                continue
            key["handle"], key["verdict"] = heir.handle, verdict
            there = table.lookup(key)
            more = packets - self._done.get(name, np.uint64(0))
            table.update(key, more if there is None else there + more)
            self._done[name] = packets

    def _copy_refusals(self) -> None:
        if "refusals" not in self._old.pinned:
            return
        table = self._new.maps["refusals"]
        for key, packets in self._old.maps["refusals"].items():
            name = f"refused {key}"
            more = packets - self._done.get(name, np.uint64(0))
            table.update(key, more + (table.lookup(key) or 0))
            self._done[name] = packets

    def _copy_unwrapped(self) -> None:
        """Of the addresses that packets are unwrapped for still."""
        table = self._new.maps["unwrap_addresses"]
        for key, counted in self._old.maps["unwrap_addresses"].items():
            name = f"unwrapped {key}"
            there = table.lookup(key)
            if there is None:
                continue
            done = self._done.get(name)
            for field in there.dtype.names or ():
                there[field] += counted[field] - (np.uint64(0) if done is None else done[field])
            table.update(key, there)
            self._done[name] = counted
