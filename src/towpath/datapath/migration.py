# SPDX-License-Identifier: Apache-2.0
"""From tables of another version, or of other limits, to this program's, without a lost packet.

Services and backends are made in the new tables as any others are, by a plan, and get
other indexes and handles there; everything else that is worth keeping is copied by
which index became which. What each map holds decides how, and every map is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from towpath.datapath.flow_copy import FlowCopy, Heir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.kept import KeptTables
    from towpath.datapath.program import LoadedProgram
    from towpath.datapath.tables import Installed


PLANNED = frozenset(
    {"vips", "vip_lengths", "port_pages", "services", "maglev", "backends", "settings"}
)
"""Written anew from what the old ones say."""
FLOWS = frozenset({"flows", "flow_tags"})
COUNTERS = frozenset(
    {"verdict_cpus", "service_cpus", "backend_cpus", "backend_flows", "backend_drops"}
)
DEVICES = frozenset({"vlan_devices", "egress_devices"})
"""Copied as they are, for the moment until the devices are looked at."""
PASSING = frozenset({"works", "traces", "flow_cpus"})
"""With nothing in them that outlives a jiffy."""

READ = frozenset({"vips", "services", "maglev", "backends", "settings", "flows", "flow_tags"})
"""Without these there is nothing to go by."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of what is in both tables."""

    services: dict[int, int]
    """New indexes by old ones."""
    handles: dict[int, Heir]
    """By old handles."""

    @classmethod
    def between(cls, old: Iterable[Installed], new: Iterable[Installed]) -> Self:
        """Return it by what services are for, and by backends' addresses."""
        made = {service.key: service for service in new}
        common = [(service, made[service.key]) for service in old if service.key in made]
        return cls(
            {was.index: now.index for was, now in common},
            {
                handle: Heir(now.handles[address], now.index, was.key, was.index)
                for was, now in common
                for address, handle in was.handles.items()
                if address in now.handles
            },
        )


def copy_flows(old: KeptTables, new: LoadedProgram, moved: Moved, now: int) -> int:
    """Copy flows that ``new`` doesn't have; returns how many. ``now``: jiffies, 32 bits."""
    return FlowCopy(old, new, moved.handles, now).run()


def copy_devices(old: KeptTables, new: LoadedProgram) -> None:
    """Tell the program of the VLAN devices that the one before knew."""
    for name in sorted(DEVICES):
        for key, value in old.maps[name].items():
            new.maps[name].update(key, value)


def copy_counters(old: KeptTables, new: LoadedProgram, moved: Moved) -> None:
    """Go on counting where ``old`` is now. No packet may be counted in ``new`` yet."""
    verdicts = _verdicts(old, new)
    with old.maps["verdict_cpus"].mmap() as mapped:
        for was, number in verdicts.items():
            new.rows("verdict_cpus")["packets"][:, number] = mapped.array["packets"][:, was]
    _copy_columns(old, new, "service_cpus", moved.services)
    _sort_reasons(old, new, moved.services, verdicts)
    was_bits, bits = (each.constant("handle_bits", "HANDLE_INDEX_BITS") for each in (old, new))
    by_backend = {
        handle & (1 << was_bits) - 1: heir.handle & (1 << bits) - 1
        for handle, heir in moved.handles.items()
    }
    for name in ("backend_cpus", "backend_flows"):
        _copy_columns(old, new, name, by_backend)
    _copy_backend_drops(old, new, moved, verdicts)


def _verdicts(old: KeptTables, new: LoadedProgram) -> dict[int, int]:
    """The new number of each old verdict that is known by the same name."""
    names = new.btf.enum("verdict").__members__
    return {
        was: int(names[name])
        for was, name in old.names("verdict").items()
        if name in names and name != "VERDICT_MAX"
    }


def _copy_columns(
    old: KeptTables, new: LoadedProgram, name: str, columns: Mapping[int, int]
) -> None:
    """Copy counters of a table with a row for each CPU, old columns to new ones."""
    was, becomes = (list(each) for each in (columns.keys(), columns.values()))
    if name not in old.pinned or not was:
        return
    cpus = new.layout.cpus
    rows = new.rows(name).reshape(cpus, -1)
    with old.maps[name].mmap() as mapped:
        before = mapped.array.reshape(cpus, -1)
        if rows.dtype.names is None:
            rows[:, becomes] = before[:, was]
        for field in rows.dtype.names or ():
            # Not the next hops: they are asked for again.
            if rows.dtype[field].kind == "u":
                rows[field][:, becomes] = before[field][:, was]


def _sort_reasons(
    old: KeptTables, new: LoadedProgram, columns: Mapping[int, int], verdicts: Mapping[int, int]
) -> None:
    """Copy services' drops by reason, whose places are verdicts from the first drop on."""
    was_first, first = (each.constant("verdict", "VERDICT_DROP_NO_BACKEND") for each in (old, new))
    was, becomes = list(columns.keys()), list(columns.values())
    rows = new.rows("service_cpus").reshape(new.layout.cpus, -1)["dropped"]
    with old.maps["service_cpus"].mmap() as mapped:
        before = mapped.array.reshape(new.layout.cpus, -1)["dropped"]
        for was_verdict, verdict in verdicts.items():
            at, to = was_verdict - was_first, verdict - first
            if 0 <= at < before.shape[2] and 0 <= to < rows.shape[2]:
                rows[:, becomes, to] = before[:, was, at]


def _copy_backend_drops(
    old: KeptTables, new: LoadedProgram, moved: Moved, verdicts: Mapping[int, int]
) -> None:
    table = new.maps["backend_drops"]
    for key, packets in old.maps["backend_drops"].items():
        heir, verdict = moved.handles.get(int(key["handle"])), verdicts.get(int(key["verdict"]))
        if heir is not None and verdict is not None:
            key["handle"], key["verdict"] = heir.handle, verdict
            table.update(key, packets)
