# SPDX-License-Identifier: Apache-2.0
"""The load balancer's program and maps: loaded anew, or over the tables of the last one.

With a pin directory the maps outlive the process. They are pinned in a directory
that is built aside and renamed into place, so that it is there whole or not at
all. A program that is loaded later uses the same maps, with the same seeds.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.flows.flow_table import IDLE_SECONDS
from towpath.datapath.migration.migration import READ
from towpath.datapath.migration.pinned_tables import TYPES, KeptTables
from towpath.datapath.program.layout import Layout
from towpath.datapath.program.pins import LINKS, MAPS, NEXT, found, succeed
from towpath.datapath.snat.table import constants as snat_constants
from towpath.datapath.snat.table import units
from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import ensure_bpffs, new_pin_dir, remove_pins
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.pinned_btf import pin_types, pinned_types
from towpath.kernel.errors import KernelError, LayoutError
from towpath.kernel.jiffies import per_second
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from towpath.datapath.address import Address
    from towpath.model.settings import Limits

log = logging.getLogger(__name__)

# Every node of a group must send a flow to the same backend, so this is not random.
HASH_SEED = 0x546F7770617468
_SCRATCH = frozenset({"works", "nats", "nat_ways"})
"""Maps with nothing in them that outlives a packet: every program has its own."""
_SEEDS = {"hash_seed": "hash_seed", "flow_seed": "flow_seed", "trace_cookie": "cookie"}


class LoadedProgram:
    """A loaded object. ``adopted`` says that its maps were there before.

    ``leaving``: other tables that are pinned, whose flows have to come along. Where the
    maps are not adopted these are what they are to be filled from, and are still in use.
    ``mark`` is that of health checks' packets, 0 for none.

    LayoutError: tables are pinned that can't be read.
    """

    def __init__(
        self, limits: Limits, pins: Path | None = None, *, snat: Snat | None = None, mark: int = 0
    ) -> None:
        self._undo = ExitStack()
        self._mark = mark
        self._rows: dict[str, Any] = {}
        self._pins = pins
        self._snat = snat or Snat()
        self.adopted = False
        self.leaving: KeptTables | None = None
        self.current: Path | None = None
        """Where these maps are pinned, or will be."""
        self.object = self._undo.enter_context(BpfObject.packaged("lb"))
        self.btf = self.object.btf
        self.layout = Layout.of(
            limits,
            possible_cpus(),
            flow_ways=self.constant("flow_limits", "FLOW_WAYS"),
            maglev_line=self.constant("maglev_limits", "MAGLEV_LINE"),
            client_ways=self.constant("client_limits", "CLIENT_WAYS"),
            fragment_ways=self.constant("fragment_limits", "FRAGMENT_WAYS"),
        )
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        for name, entries in self.layout.entries.items():
            self.object.resize(name, entries)
        self._seeds = {
            "hash_seed": HASH_SEED,
            "flow_seed": secrets.randbits(64),
            "trace_cookie": secrets.randbits(63) + 1,
        }
        self._find()
        for name, value in self.constants.items():
            self.object.rodata[name] = value
        self.object.load()
        self.maps = self.object.maps
        if not self.adopted:
            self._store_seeds()
            if self.leaving is None and self._pins:
                self.current = self._pins / MAPS
                self._pin_maps()

    @property
    def nat_addresses(self) -> list[Address]:
        """What source NAT translates to, by number; where there is nothing, 0.0.0.0."""
        most = self.constant("nat_limits", "NAT_SOURCES")
        nobody: tuple[Address, ...] = (IPv4Address(0),) * most
        families = (self._snat.addresses(version) for version in (4, 6))
        return [address for each in families for address in (*each, *nobody)[:most]]

    @property
    def constants(self) -> dict[str, Any]:
        """What a program over these tables has to be told before it is loaded."""
        nat = snat_constants(
            self._snat,
            self.btf.dtype("address"),
            per_family=self.constant("nat_limits", "NAT_SOURCES"),
            shift=self.constant("nat_limits", "NAT_SEEN_SHIFT"),
        )
        seen_shift = self.constant("flow_limits", "FLOW_SEEN_SHIFT")
        others = {
            "health_mark": self._mark,
            "flow_idle": units(IDLE_SECONDS, per_second(), seen_shift),
        }
        return self._seeds | self.layout.constants() | nat | others

    def _find(self) -> None:
        """Use the pinned maps that fit; those that don't, or don't any more, are to be left."""
        there = found(self._pins) if self._pins else []
        for directory in there:
            if not self.adopted and self._fits(directory):
                self.adopted, self.current = True, directory
        if self.adopted:
            for directory in there:
                if directory != self.current:
                    self._leave_if_readable(directory)
        elif there:
            # The last: beside it, one that came later was never in use by all devices.
            self.leaving = self._readable(there[-1])
            self._take_seeds(self.leaving.rows("settings")[0])

    def _leave_if_readable(self, directory: Path) -> None:
        try:
            self.leaving = self._readable(directory)
        except KernelError as error:
            log.warning("flows in %s are not taken over: %s", directory, error)

    def _fits(self, directory: Path) -> bool:
        """Use the pinned maps if they are as this object wants them.

        They must have the sizes just set: the program's constants speak of them.
        """
        with ExitStack() as undo:
            types = pinned_types(directory / TYPES)
            pinned = {
                path.name: undo.enter_context(Map.from_pin(path, types))
                for path in sorted(directory.iterdir())
                if path.name != TYPES
            }
            if self._differences(pinned):
                return False
            for name, each in pinned.items():
                self.object.reuse(name, each)
            self._take_seeds(pinned["settings"].lookup(0))
            # The object's own file descriptors are copies.
        return True

    def _take_seeds(self, record: Any) -> None:
        self._seeds = {name: int(record[field]) for name, field in _SEEDS.items()}

    def _differences(self, pinned: Mapping[str, Map]) -> list[str]:
        wanted = {
            name: self.object.layout(name) for name in self.object.map_names if name not in _SCRATCH
        }
        return [
            *(f"{name} is missing" for name in wanted if name not in pinned),
            *(f"{name} is unknown" for name in pinned if name not in wanted),
            *(
                f"{name}: {line}"
                for name, layout in wanted.items()
                if name in pinned
                for line in layout.differences(pinned[name].layout)
            ),
        ]

    def _readable(self, directory: Path) -> KeptTables:
        """Tables that another program was made for. LayoutError: they aren't understood."""
        layouts = {name: self.object.layout(name) for name in self.object.map_names}
        kept = self._undo.enter_context(closing(KeptTables(directory, self.btf, layouts)))
        missing = [f"{name} is missing" for name in sorted(READ - kept.pinned.keys())]
        if missing:
            raise LayoutError(
                f"{directory} has tables that this version of Towpath can't read;"
                " detach that load balancer first",
                missing,
            )
        return kept

    def _store_seeds(self) -> None:
        record = np.zeros((), self.btf.dtype("settings"))
        for name, field in _SEEDS.items():
            record[field] = self._seeds[name]
        self.maps["settings"].update(0, record)

    def pin_beside(self) -> None:
        """Pin the maps, complete now, beside those that they take the place of."""
        if self._pins is not None:
            self.current = self._pins / NEXT
            # Of a version that came and went half way.
            remove_pins(self.current)
            self._pin_maps()

    def _pin_maps(self) -> None:
        if self.current is None:
            return
        ensure_bpffs()
        self.current.parent.mkdir(parents=True, exist_ok=True)
        with new_pin_dir(self.current) as building:
            for name, each in self.maps.items():
                if not name.startswith(".") and name not in _SCRATCH:
                    each.pin(building / name)
            pin_types(self.btf, building / TYPES)

    def give_up(self) -> None:
        """Unpin tables that were to take another's place, unless a device has them already.

        Then the next process finds both, and goes on from there.
        """
        if self._pins is None or self.current != self._pins / NEXT:
            return
        ours = {program.id for program in self.object.programs.values()}
        pinned = (self._pins / LINKS).glob("*")
        if not any(links.from_pin(path).program_id in ours for path in pinned):
            remove_pins(self.current)

    def leave(self) -> None:
        """Make these tables the only ones that are pinned."""
        if self._pins is not None and self.current is not None:
            succeed(self._pins, self.current)
        self.leaving = None

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi/lb.h``."""
        return int(self.btf.enum(enum)[name])

    @property
    def cookie(self) -> int:
        """What a frame that asks for a trace starts with."""
        return self._seeds["trace_cookie"]

    def rows(self, name: str) -> Any:
        """Map a whole table for as long as the program is open."""
        if name not in self._rows:
            self._rows[name] = self._undo.enter_context(self.maps[name].mmap()).array
        return self._rows[name]

    def forgetter(self, *names: str, columns: int) -> Callable[[int], None]:
        """Return a function that zeroes one column of per-CPU tables."""
        tables = [self.maps[name] for name in names]
        zeros = [np.zeros((), table.value_dtype) for table in tables]

        def forget(column: int) -> None:
            for cpu in range(self.layout.cpus):
                for table, zero in zip(tables, zeros, strict=True):
                    table.update(cpu * columns + column, zero)

        return forget

    def close(self) -> None:
        """Close maps and programs; what is pinned or attached stays."""
        self._undo.close()
