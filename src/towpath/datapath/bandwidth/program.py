# SPDX-License-Identifier: Apache-2.0
"""The programs of bandwidth with their tables: loaded, sized, pinned, and taken over.

What is pinned below ``pins`` outlives the process: ``maps`` are the tables, ``links`` the places of
the programs on the devices. The next process goes on with the tables that fit what it wants. Those
that don't are made anew in ``maps-next``, which takes the place of ``maps`` when all links have the
new programs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from towpath.closeable import Closeable
from towpath.datapath.maps.own import OwnTables
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import ProgramType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.kernel.bpf.programs import Program

_SIZED = ("bw_limits", "bw_states", "bw_buckets", "bw_counts", "bw_names")
"""Rows are aggregates: tables of one size, or none of them is of use."""
_VARIANTS = ("atomic", "locked")
_SET_TSTAMP, _KTIME_GET_TAI_NS = 192, 208  # BPF_FUNC_*


def constants(*, direct: bool, by_address: bool) -> dict[str, int]:
    """What ``bpf/bandwidth/maps.h`` wants to know."""
    return {
        "bw_types": probe.helper(_SET_TSTAMP, ProgramType.SCHED_CLS),
        "bw_tai": probe.helper(_KTIME_GET_TAI_NS, ProgramType.SCHED_CLS),
        "bw_direct": direct,
        "bw_by_address": by_address,
    }


class BandwidthProgram(Closeable):
    """The loaded programs. ``pins``: where they outlive this process, None for not at all.

    ``aggregates``: how many there is room for. ``atomic``: whether charges are atomic, or under
    locks; None: as the kernel can.

    VerifierError, KernelError: they can't be loaded, or pinned.
    """

    def __init__(
        self,
        aggregates: int,
        pins: Path | None = None,
        *,
        direct: bool = False,
        by_address: bool = False,
        atomic: bool | None = None,
    ) -> None:
        self.atomic = probe.atomics() if atomic is None else atomic
        """Charges are atomic; else they are made under locks."""
        with ExitStack() as undo:
            obj = undo.enter_context(BpfObject.packaged("bandwidth"))
            self._object = obj
            self._variant = _VARIANTS[not self.atomic]
            for name in obj.program_names:
                obj.autoload(name, not name.endswith(f"_{_VARIANTS[self.atomic]}"))
            for name in _SIZED:
                obj.resize(name, aggregates + 1)
            for name, value in constants(direct=direct, by_address=by_address).items():
                obj.rodata[name] = value
            self.own = OwnTables(obj, obj.map_names, pins, together=_SIZED)
            self.own.reuse(undo.enter_context(ExitStack()))
            obj.load()
            self.maps = obj.maps
            self.btf = obj.btf
            self.own.pin()
            self._undo = undo.pop_all()

    @property
    def aggregates(self) -> int:
        """How many there is room for."""
        return self.maps["bw_limits"].max_entries - 1

    def program(self, name: str) -> Program:
        """The program that is called tag, pace, police or receive, as this kernel has it."""
        programs: Mapping[str, Program] = self._object.programs
        return programs.get(f"bw_{name}_{self._variant}") or programs[f"bw_{name}"]

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""
        return int(self._object.btf.enum(enum)[name])

    def verdicts(self) -> list[str]:
        """The verdicts' names in their order: ``enum bandwidth_verdict``."""
        members = self._object.btf.enum("bandwidth_verdict")
        end = members["BANDWIDTH_VERDICTS"]
        found = sorted((each for each in members if each < end), key=int)
        return [each.name.removeprefix("BANDWIDTH_").lower() for each in found]

    def record(self, map_name: str) -> Any:
        """An empty value of a table."""
        import numpy as np  # noqa: PLC0415 -- takes long to import

        return np.zeros((), self.maps[map_name].value_dtype)

    def close(self) -> None:
        """Let go of it: what is attached and pinned stays."""
        self._undo.close()
