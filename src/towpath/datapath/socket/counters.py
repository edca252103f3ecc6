# SPDX-License-Identifier: Apache-2.0
"""What was counted at sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.documents import SocketBackend, SocketCounters, SocketService

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.datapath.lb.services import Installed
    from towpath.datapath.socket.program import SocketProgram
    from towpath.kernel.bpf.maps import Map

    Array = np.ndarray[Any, Any]

_HOOKS = ("connect", "sendmsg")
_COUNTED = ("connects", "datagrams")


class Rows:
    """Tables with a row for each CPU, and one more for what came along. Not thread-safe."""

    def __init__(self, program: SocketProgram) -> None:
        self._program = program
        cpus = program.tables.layout.cpus
        self._verdicts = program.names("socket_verdict", "SOCKET_", "SOCKET_VERDICTS")
        self._hooks = program.names("socket_hook", "SOCKET_", "SOCKET_HOOKS")
        self._of_service = program.constant("socket_limits", "SOCKET_OF_SERVICE")
        self.services = program.rows("socket_service_cpus").reshape(cpus + 1, -1)
        self.backends = program.rows("socket_backend_cpus").reshape(cpus + 1, -1)

    def verdicts(self) -> dict[str, dict[str, int]]:
        """Calls by hook and verdict."""
        sums = self._program.rows("socket_cpus")["calls"].sum(axis=0, dtype=np.uint64)
        return {
            hook: {name: int(sums[at][number]) for number, name in enumerate(self._verdicts)}
            for at, hook in enumerate(self._hooks)
        }

    def read(self, installed: Iterable[Installed], names: Mapping[Any, str]) -> SocketCounters:
        """All of it; ``names`` has the services' by their keys."""
        services = {name: self.services[name].sum(axis=0, dtype=np.uint64) for name in _HOOKS}
        return SocketCounters(
            verdicts=self.verdicts(),
            services=tuple(self._service(each, services, names) for each in installed),
        )

    def _service(
        self, service: Installed, sums: Mapping[str, Array], names: Mapping[Any, str]
    ) -> SocketService:
        counted = {
            hook: {
                name: int(sums[hook][service.index][number])
                for number, name in enumerate(self._verdicts[: self._of_service])
            }
            for hook in _HOOKS
        }
        backends = tuple(self._backends(service))
        return SocketService(names.get(service.key, str(service.key)), counted, backends)

    def _backends(self, service: Installed) -> Iterator[SocketBackend]:
        mask = (1 << self._program.constant("handle_bits", "HANDLE_INDEX_BITS")) - 1
        for address, handle in service.handles.items():
            rows = self.backends[:, handle & mask]
            rows = rows[rows["handle"] == handle]
            yield SocketBackend(address, *(int(rows[name].sum()) for name in _COUNTED))


def carry(program: SocketProgram, rows: Rows) -> None:
    """Take along what was counted over other tables, by what services and backends are."""
    left = program.left
    if not left:
        return
    for kind, names in (("service", _HOOKS), ("backend", _COUNTED)):
        new = rows.services if kind == "service" else rows.backends
        there = _positions(program.maps[f"socket_{kind}_ids"])
        with left[f"socket_{kind}_cpus"].mmap(writable=False) as mapped:
            was = _positions(left[f"socket_{kind}_ids"])
            old = mapped.array.reshape(-1, left[f"socket_{kind}_ids"].max_entries)
            pairs = [(was[each], at) for each, at in there.items() if each in was]
            for name in names:
                for before, after in pairs:
                    new[name][-1][after] = _counted(old, before, name)
            if kind == "backend":
                _give_handles(program, new, [after for _, after in pairs])


def _counted(rows: Array, at: int, name: str) -> Any:
    column = rows[:, at]
    if "handle" in (rows.dtype.names or ()) and len(column):
        # Of a backend that has had several handles the last one's are its.
        column = column[column["handle"] == column["handle"].max()]
    return column[name].sum(axis=0, dtype=np.uint64)


def _give_handles(program: SocketProgram, rows: Array, indexes: list[int]) -> None:
    handles = program.tables.rows("backends")["handle"]
    rows["handle"][-1][indexes] = handles[indexes]


def _positions(table: Map) -> dict[int, int]:
    with table.mmap(writable=False) as mapped:
        return {int(mapped.array[at]): int(at) for at in np.flatnonzero(mapped.array)}
