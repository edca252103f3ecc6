# SPDX-License-Identifier: Apache-2.0
"""The load balancer's maps: made anew, or those of the last process, for programs of any kind.

With a pin directory the maps outlive the process. They are pinned in a directory
that is built aside and renamed into place, so that it is there whole or not at
all. Maps that are adopted keep their seeds. Programs are loaded over them by
:meth:`SharedMaps.load`, as many as there are and whatever hook they are for.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import ExitStack, closing
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.maps.layout import Layout
from towpath.datapath.maps.pinned import READ, TYPES, PinnedMaps
from towpath.datapath.maps.pins import LINKS, MAPS, NEXT, found, succeed
from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import ensure_bpffs, new_pin_dir, remove_pins
from towpath.kernel.bpf.btf import BtfError
from towpath.kernel.bpf.fragments import Kind, of_kind
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.pinned_btf import pin_types, pinned_types
from towpath.kernel.errors import KernelError, LayoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from towpath.kernel.bpf.btf import Btf
    from towpath.model.settings import Limits

    Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

# Every node of a group must send a flow to the same backend, so this is not random.
HASH_SEED = 0x546F7770617468
SCRATCH = frozenset({"contexts", "nats", "nat_client_hops"})
"""Maps with nothing in them that outlives a packet: every program has its own."""
_NUMBERED = ("verdict", "backend_state", "service_flags")
"""Enums whose numbers are in maps: a map that was filled with others is no map of this version."""
_OBJECT = "lb_tables"
_WINDOW = 1024
_SEEDS = {"hash_seed": "hash_seed", "flow_seed": "flow_seed", "trace_cookie": "cookie"}


class SharedMaps:
    """Maps for ``limits``. ``adopted`` says that they were there before.

    ``leaving``: other maps that are pinned, whose flows have to come along. Where the
    maps are not adopted these are what they are to be filled from, and are still in use.

    LayoutError: maps are pinned that can't be read.
    """

    def __init__(self, limits: Limits, pins: Path | None = None) -> None:
        self._undo = ExitStack()
        self._rows: dict[str, Any] = {}
        self._pins = pins
        self.adopted = False
        self.leaving: PinnedMaps | None = None
        self.current: Path | None = None
        """Where these maps are pinned, or will be."""
        self._object = self._undo.enter_context(BpfObject.packaged(_OBJECT))
        self.btf = self._object.btf
        self.layout = Layout.of(
            limits,
            possible_cpus(),
            flow_ways=self.constant("flow_limits", "FLOW_WAYS"),
            maglev_line=self.constant("maglev_limits", "MAGLEV_LINE"),
            client_ways=self.constant("client_limits", "CLIENT_WAYS"),
            fragment_ways=self.constant("fragment_limits", "FRAGMENT_WAYS"),
        )
        self.seeds = {
            "hash_seed": HASH_SEED,
            "flow_seed": secrets.randbits(64),
            "trace_cookie": secrets.randbits(63) + 1,
        }
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        self._resize(self._object)
        self._find()
        self._object.load()
        self.maps: Mapping[str, Map] = {
            name: each
            for name, each in self._object.maps.items()
            if name not in SCRATCH and not name.startswith(".")
        }
        if not self.adopted:
            self._store_seeds()
            if self.leaving is None and self._pins:
                self.current = self._pins / MAPS
                self._pin_maps()

    def load(
        self,
        name: str,
        constants: Mapping[str, Any],
        programs: Collection[str] | None = None,
        *,
        kind: Kind = Kind.LINEAR,
        slots: bool = False,
    ) -> BpfObject:
        """Load a packaged object over these maps; to be closed by who asked for it.

        ``constants``: what its programs are told besides what the maps say of themselves.
        ``programs``: which ones are loaded, all unless they are named. ``kind``: of its XDP
        programs. ``slots``: dispatchers may call those that take frames in one piece.
        VerifierError, KernelError.
        """
        made = of_kind(BpfObject.packaged(name), kind, slots=slots)
        try:
            self.use(made)
            for constant, value in (self.constants | dict(constants)).items():
                made.rodata[constant] = value
            for each in made.program_names if programs is not None else ():
                made.autoload(each, on=each in (programs or ()))
            made.load()
        except BaseException:
            made.close()
            raise
        return made

    def use(self, obj: BpfObject) -> None:
        """Have an object that isn't loaded yet use these maps where it declares them."""
        self._resize(obj)
        wanted = set(obj.map_names)
        for name, each in self.maps.items():
            if name in wanted:
                obj.reuse(name, each)

    def _resize(self, obj: BpfObject) -> None:
        declared = set(obj.map_names)
        for name, entries in self.layout.entries.items():
            if name in declared:
                obj.resize(name, entries)

    @property
    def constants(self) -> dict[str, Any]:
        """What every program over these maps has to be told before it is loaded."""
        return self.seeds | self.layout.constants()

    # ---- those that are pinned -------------------------------------------------------------------

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
            if self._differences(pinned) or not self._numbers_alike(types):
                return False
            for name, each in pinned.items():
                self._object.reuse(name, each)
            self._take_seeds(pinned["settings"].lookup(0))
            # The object's own file descriptors are copies.
        return True

    def _numbers_alike(self, types: Btf) -> bool:
        """Whether what is stored by number has the numbers that this object has for it."""
        try:
            return all(
                types.enum(each).__members__ == self.btf.enum(each).__members__
                for each in _NUMBERED
            )
        except BtfError:
            return False

    def _take_seeds(self, record: Any) -> None:
        self.seeds = {name: int(record[field]) for name, field in _SEEDS.items()}

    def _differences(self, pinned: Mapping[str, Map]) -> list[str]:
        wanted = {
            name: self._object.layout(name)
            for name in self._object.map_names
            if name not in SCRATCH
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

    def _readable(self, directory: Path) -> PinnedMaps:
        """Tables that another program was made for. LayoutError: they aren't understood."""
        layouts = {name: self._object.layout(name) for name in self._object.map_names}
        kept = self._undo.enter_context(closing(PinnedMaps(directory, self.btf, layouts)))
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
            record[field] = self.seeds[name]
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
            for name in self._pinnable():
                self.maps[name].pin(building / name)
            pin_types(self.btf, building / TYPES)

    def give_up(self, programs: Collection[int]) -> None:
        """Unpin maps that were to take another's place, unless a device has them already.

        ``programs``: ids of those that use these maps. Where one of them is attached the next
        process finds both, and goes on from there.
        """
        if self._pins is None or self.current != self._pins / NEXT:
            return
        pinned = (self._pins / LINKS).glob("*")
        if not any(links.from_pin(path).program_id in programs for path in pinned):
            remove_pins(self.current)

    def leave(self) -> None:
        """Make these tables the only ones that are pinned."""
        if self._pins is not None and self.current is not None:
            succeed(self._pins, self.current)
            self.current = self._pins / MAPS
        self.leaving = None

    def pin_again(self) -> list[str]:
        """Pin those again whose pins somebody has removed; their names. KernelError."""
        if self.current is None:
            return []
        try:
            there = set(os.listdir(self.current))  # noqa: PTH208 -- names, a second apart for ever
        except FileNotFoundError:
            self._pin_maps()
            return [self.current.name]
        missing = [name for name in (*self._pinnable(), TYPES) if name not in there]
        for name in missing:
            if name == TYPES:
                pin_types(self.btf, self.current / TYPES)
            else:
                self.maps[name].pin(self.current / name)
        return missing

    def _pinnable(self) -> list[str]:
        return [name for name in self.maps if not name.startswith(".") and name not in SCRATCH]

    # ---- for who reads and writes them -----------------------------------------------------------

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi/lb.h``."""
        return int(self.btf.enum(enum)[name])

    def rows(self, name: str) -> Any:
        """Map a whole table for as long as the maps are open."""
        if name not in self._rows:
            self._rows[name] = self._undo.enter_context(self.maps[name].mmap()).array
        return self._rows[name]

    def forgetter(self, *names: str, columns: int) -> Callable[[Sequence[int]], None]:
        """Return a function that zeroes columns of per-CPU tables."""
        tables = [self.maps[name] for name in names]

        def forget(chosen: Sequence[int]) -> None:
            for first, some in _near(chosen):
                for cpu, table in product(range(self.layout.cpus), tables):
                    # Not the whole table: what is mapped counts as this process's memory.
                    with table.mmap(cpu * columns + first, int(some[-1]) + 1) as window:
                        window.array[some] = np.zeros((), table.value_dtype)

        return forget

    def close(self) -> None:
        """Close the maps; what is pinned, or used by a program, stays."""
        self._undo.close()


def _near(chosen: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """Columns in groups that are near each other: the first, and where they are from there."""
    left = np.sort(np.asarray(chosen))
    while len(left):
        some = left[left < left[0] + _WINDOW]
        yield int(some[0]), some - some[0]
        left = left[len(some) :]
