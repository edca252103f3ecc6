# SPDX-License-Identifier: Apache-2.0
"""The load balancer's program and maps: loaded anew, or over the tables of the last one.

With a pin directory the maps outlive the process. They are pinned in a directory
that is built aside and renamed into place, so that it is there whole or not at
all. A program that is loaded later uses the same maps, with the same seeds.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.layout import Layout
from towpath.kernel.bpffs import ensure_bpffs, new_pin_dir
from towpath.kernel.errors import LayoutError
from towpath.kernel.kept_types import pin_types, pinned_types
from towpath.kernel.maps import Map, possible_cpus
from towpath.kernel.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from towpath.model.settings import Limits

# Every node of a group must send a flow to the same backend, so this is not random.
HASH_SEED = 0x546F7770617468
_SCRATCH = frozenset({"works"})
"""Maps with nothing in them that outlives a packet: every program has its own."""
_TYPES = "types"
"""Among the pinned maps, a copy of their types."""
_SEEDS = {"hash_seed": "hash_seed", "flow_seed": "flow_seed", "trace_cookie": "cookie"}


class LoadedProgram:
    """A loaded object. ``adopted`` says that its maps were there before."""

    def __init__(self, limits: Limits, pins: Path | None = None) -> None:
        self._undo = ExitStack()
        self._rows: dict[str, Any] = {}
        self.object = self._undo.enter_context(BpfObject.packaged("xdp"))
        self.btf = self.object.btf
        self.layout = Layout.of(
            limits,
            possible_cpus(),
            flow_ways=self.constant("flow_limits", "FLOW_WAYS"),
            maglev_line=self.constant("maglev_limits", "MAGLEV_LINE"),
            fragment_ways=self.constant("fragment_limits", "FRAGMENT_WAYS"),
        )
        self._map_directory = pins / "maps" if pins else None
        self.adopted = bool(self._map_directory and self._map_directory.is_dir())
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        for name, entries in self.layout.entries.items():
            self.object.resize(name, entries)
        if self._map_directory and self.adopted:
            self._reuse_maps(self._map_directory)
        else:
            self._seeds = {
                "hash_seed": HASH_SEED,
                "flow_seed": secrets.randbits(64),
                "trace_cookie": secrets.randbits(63) + 1,
            }
        for name, value in (self._seeds | self.layout.constants()).items():
            self.object.rodata[name] = value
        self.object.load()
        self.maps = self.object.maps
        if not self.adopted:
            self._store_seeds()
            self._pin_maps()

    def _reuse_maps(self, directory: Path) -> None:
        """Use the pinned maps. LayoutError, naming all differences, if they don't fit.

        They must have the sizes just set: the program's constants speak of them.
        """
        types = pinned_types(directory / _TYPES)
        pinned = {
            path.name: self._undo.enter_context(Map.from_pin(path, types))
            for path in sorted(directory.iterdir())
            if path.name != _TYPES
        }
        self._compare(directory, pinned)
        for name, each in pinned.items():
            self.object.reuse(name, each)
        record = pinned["settings"].lookup(0)
        self._seeds = {name: int(record[field]) for name, field in _SEEDS.items()}

    def _compare(self, directory: Path, pinned: Mapping[str, Map]) -> None:
        wanted = {
            name: self.object.layout(name) for name in self.object.map_names if name not in _SCRATCH
        }
        differences = [
            *(f"{name} is missing" for name in wanted if name not in pinned),
            *(f"{name} is unknown" for name in pinned if name not in wanted),
            *(
                f"{name}: {line}"
                for name, layout in wanted.items()
                if name in pinned
                for line in layout.differences(pinned[name].layout)
            ),
        ]
        if differences:
            raise LayoutError(
                f"{directory} has the tables of a load balancer with other limits, or of another"
                " version of Towpath; detach that one first",
                differences,
            )

    def _store_seeds(self) -> None:
        record = np.zeros((), self.btf.dtype("settings"))
        for name, field in _SEEDS.items():
            record[field] = self._seeds[name]
        self.maps["settings"].update(0, record)

    def _pin_maps(self) -> None:
        if self._map_directory is None:
            return
        ensure_bpffs()
        self._map_directory.parent.mkdir(parents=True, exist_ok=True)
        with new_pin_dir(self._map_directory) as building:
            for name, each in self.maps.items():
                if not name.startswith(".") and name not in _SCRATCH:
                    each.pin(building / name)
            pin_types(self.btf, building / _TYPES)

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi.h``."""
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

    def forgetter(self, name: str, columns: int) -> Callable[[int], None]:
        """Return a function that zeroes one column of a per-CPU table."""
        table = self.maps[name]
        zero = np.zeros((), table.value_dtype)

        def forget(column: int) -> None:
            for cpu in range(self.layout.cpus):
                table.update(cpu * columns + column, zero)

        return forget

    def close(self) -> None:
        """Close maps and programs; what is pinned or attached stays."""
        self._undo.close()
