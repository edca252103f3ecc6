# SPDX-License-Identifier: Apache-2.0
"""The programs at sockets, over the load balancer's tables and some of their own.

What is pinned below ``pins`` outlives the process: ``maps`` are the tables of their own, ``links``
the places of the programs. The next process uses the tables that fit what it wants. Counters are by
indexes of the load balancer's tables: where these are others than before, counters are made
anew, and what was counted comes along by what services and backends are.
"""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.closeable import Closeable
from towpath.datapath.maps.own import OwnTables
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import ProgramType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.programs import Program

OBJECT = "socket"
TRIAL = "socket_trial"
_MPTCP = 262  # IPPROTO_MPTCP
_SET_RETVAL = 187  # BPF_FUNC_set_retval (5.18)
_SKC_TO_MPTCP_SOCK = 196  # BPF_FUNC_skc_to_mptcp_sock (5.19)
_BY_INDEX = (
    "socket_states",
    "socket_service_cpus",
    "socket_backend_cpus",
    "socket_service_ids",
    "socket_backend_ids",
)
"""Whose rows are those of the load balancer's tables: all of them are of use, or none."""


def chooses_errors() -> bool:
    """Whether this kernel lets programs say with which error a call fails."""
    return _may_call(_SET_RETVAL)


def _may_call(helper: int) -> bool:
    return probe.helper(helper, ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT)


def has_mptcp() -> bool:
    """Whether this kernel has MPTCP, be it enabled now or not."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP).close()
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT
    return True


def tells_mptcp() -> bool:
    """Whether this kernel tells programs which sockets are MPTCP's."""
    return _may_call(_SKC_TO_MPTCP_SOCK)


class SocketProgram(Closeable):
    """The loaded programs over ``tables``. ``pins``: where they outlive this process, or None.

    ``refuse_with``: the errno of calls to services without a backend, 0 for EPERM; kernels before
    5.18 have no other. ``mark``: that of health checks, which aren't balanced.

    VerifierError, KernelError: they can't be loaded, or pinned.
    """

    def __init__(
        self,
        tables: SharedMaps,
        pins: Path | None = None,
        *,
        refuse_with: int = 0,
        mark: int = 0,
        foreign: int = 0,
    ) -> None:
        self.tables = tables
        self._rows: dict[str, Any] = {}
        self.left: dict[str, Map] = {}
        """Counters of other tables, that are to come along."""
        with ExitStack() as undo:
            self._object = undo.enter_context(BpfObject.packaged(OBJECT))
            self._left_open = undo.enter_context(ExitStack())
            tables.use(self._object)
            names = (name for name in self._object.map_names if name.startswith("socket_"))
            self.own = OwnTables(self._object, names, pins, together=_BY_INDEX)
            self._resize()
            with ExitStack() as kept:
                reused = self.own.reuse(kept, self._still)
                if not reused.keys() >= set(_BY_INDEX):
                    self._leave()
                self.epoch = self._epoch(reused)
                self._tell(refuse_with, mark, foreign)
                self._object.load()
            if "socket_states" in self.own.fresh:
                self._begin()
            self.own.pin()
            self._undo = undo.pop_all()

    def _resize(self) -> None:
        layout = self.tables.layout
        services, backends = layout.entries["services"], layout.entries["backends"]
        rows = layout.cpus + 1
        for name, entries in {
            "socket_cpus": layout.cpus,
            "socket_service_cpus": services * rows,
            "socket_backend_cpus": backends * rows,
            "socket_service_ids": services,
            "socket_backend_ids": backends,
        }.items():
            self._object.resize(name, entries)

    # ---- what is pinned --------------------------------------------------------------------------

    def _still(self, fitting: Mapping[str, Map]) -> bool:
        """Whether counters are by indexes of the tables that the load balancer has now."""
        state = fitting["socket_states"].lookup(0)
        return int(state["services"]) == self.tables.maps["services"].id

    def _leave(self) -> None:
        """Keep counters of other tables open, if they can be read."""
        with ExitStack() as undo:
            pinned = self.own.pinned(undo, _BY_INDEX)
            layouts = {name: self._object.layout(name) for name in _BY_INDEX}
            if all(
                name in pinned and each.value == pinned[name].value_dtype
                for name, each in layouts.items()
            ):
                self.left = pinned
                self._left_open.enter_context(undo.pop_all())

    def _epoch(self, reused: Mapping[str, Map]) -> int:
        if "socket_states" in reused:
            return int(reused["socket_states"].lookup(0)["epoch"])
        return secrets.randbits(31) + 1

    def _tell(self, refuse_with: int, mark: int, foreign: int) -> None:
        chooses = chooses_errors()
        own = {
            "socket_epoch": self.epoch,
            "socket_set_retval": chooses,
            "socket_refuse_with": refuse_with if chooses else 0,
            "socket_has_mptcp": has_mptcp(),
            "socket_tells_mptcp": tells_mptcp(),
            "health_mark": mark,
            "foreign_marks": foreign,
        }
        for name, value in (self.tables.constants | own).items():
            if name in self._object.rodata:
                self._object.rodata[name] = value

    def _begin(self) -> None:
        record = np.zeros((), self.maps["socket_states"].value_dtype)
        record["services"], record["epoch"] = self.tables.maps["services"].id, self.epoch
        self.maps["socket_states"].update(0, record)

    def settle(self) -> None:
        """Make the tables that were made anew the only ones: all links have these programs."""
        self._left_open.close()
        self.left = {}
        self.own.settle()

    # ---- for who uses them -----------------------------------------------------------------------

    @property
    def maps(self) -> Mapping[str, Map]:
        """All of them, the load balancer's too."""
        return self._object.maps

    @property
    def programs(self) -> Mapping[str, Program]:
        """The hooks' programs, and `TRIAL`."""
        return self._object.programs

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""
        return int(self._object.btf.enum(enum)[name])

    def names(self, enum: str, prefix: str, end: str) -> list[str]:
        """The members of an enum up to ``end`` in their order, in lower case, without prefix."""
        members = self._object.btf.enum(enum)
        found = [each for each in members if each < members[end]]
        return [each.name.removeprefix(prefix).lower() for each in sorted(found, key=int)]

    def dtype(self, name: str) -> Any:
        """The dtype of a struct of ``bpf/abi``."""
        return self._object.btf.dtype(name)

    def rows(self, name: str) -> Any:
        """Map a whole table of its own for as long as this is open."""
        if name not in self._rows:
            self._rows[name] = self._undo.enter_context(self.maps[name].mmap()).array
        return self._rows[name]

    def close(self) -> None:
        """Let go of it: what is attached and pinned stays."""
        self._undo.close()
