# SPDX-License-Identifier: Apache-2.0
"""What was counted at sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towpath.documents import SocketBackend, SocketCounters, SocketService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from towpath.datapath.lb.services import Place
    from towpath.datapath.socket.program import SocketProgram
    from towpath.kernel.bpf.maps import Map
    from towpath.model import Service, ServiceKey

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

    def read(self, places: Sequence[Place], names: Mapping[ServiceKey, Service]) -> Reading:
        """All of it; ``names`` has the services by their keys."""
        indexes = np.array([each.index for each in places], np.intp)
        handles = np.array([number for each in places for _, number in each.handles], np.uint32)
        return Reading(
            verdicts=self.verdicts(),
            places=tuple(places),
            names=tuple(names[each.key].name if each.key in names else "" for each in places),
            of_service=tuple(self._verdicts[: self._of_service]),
            services={name: self._of_services(name)[indexes] for name in _HOOKS},
            backends=self._of_backends(handles),
        )

    def _of_services(self, hook: str) -> Array:
        counted: Array = self.services[hook].sum(axis=0, dtype=np.uint64)
        return counted[:, : self._of_service]

    def _of_backends(self, handles: Array) -> dict[str, Array]:
        """What each has; one whose index was another's before has only its own."""
        mask = (1 << self._program.constant("handle_bits", "HANDLE_INDEX_BITS")) - 1
        rows = self.backends[:, handles & mask]
        own = rows["handle"] == handles
        return {
            hook: np.where(own, rows[name], 0).sum(axis=0, dtype=np.uint64)
            for hook, name in zip(_HOOKS, _COUNTED, strict=True)
        }


class Reading(NamedTuple):
    """What was counted at one moment, as arrays: of thousands of services it is quickly taken."""

    verdicts: Mapping[str, Mapping[str, int]]
    """Calls by hook and verdict."""
    places: tuple[Place, ...]
    names: tuple[str, ...]
    """Of services, in the order of places."""
    of_service: tuple[str, ...]
    """Verdicts that services have."""
    services: Mapping[str, Array]
    """By hook: a row for each service, a column for each verdict."""
    backends: Mapping[str, Array]
    """By hook: calls of each backend, in the order of the places' handles."""

    def counters(self) -> SocketCounters:
        """The same as a document."""
        of_services = {hook: rows.tolist() for hook, rows in self.services.items()}
        called = iter(zip(*(self.backends[hook].tolist() for hook in _HOOKS), strict=True))
        found = []
        for at, (name, place) in enumerate(zip(self.names, self.places, strict=True)):
            verdicts = {
                hook: dict(zip(self.of_service, rows[at], strict=True))
                for hook, rows in of_services.items()
            }
            backends = tuple(SocketBackend(each, *next(called)) for each, _ in place.handles)
            found.append(SocketService(name or str(place.key), verdicts, backends))
        return SocketCounters(
            verdicts={hook: dict(verdicts) for hook, verdicts in self.verdicts.items()},
            services=tuple(found),
        )


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
