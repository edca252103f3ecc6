# SPDX-License-Identifier: Apache-2.0
"""What the program has counted, on one CPU or summed over all."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.documents import BackendCounters, Counters, ServiceCounters, ServiceName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.lb.backends import BackendTable
    from towpath.datapath.lb.services import Installed
    from towpath.datapath.maps.source import TableSource
    from towpath.model.service import Service, ServiceKey

    Array = np.ndarray[Any, Any]

_PREFIX = "VERDICT_"
_FIRST_DROP = "DROP_NO_BACKEND"


def verdict_names(source: TableSource) -> dict[int, str]:
    """Return ``enum verdict`` as lower-case names without their prefix."""
    members = source.btf.enum("verdict")
    return {
        int(member): name.removeprefix(_PREFIX).lower()
        for name, member in members.__members__.items()
        if name != f"{_PREFIX}MAX"
    }


class _Reader:
    """Reads the tables of one CPU, or the sums over all."""

    def __init__(self, source: TableSource, cpu: int | None) -> None:
        self._source = source
        self._cpu = cpu
        self._names = verdict_names(source)
        self._first_drop = source.constant("verdict", f"{_PREFIX}{_FIRST_DROP}")
        self.services = self._fields("service_cpus")
        self.replies = self._fields("reply_cpus")
        self.backends = self._fields("backend_cpus")
        self.backend_flows = self._backend_flows()
        self.backend_drops = self._backend_drops()

    def _of_cpu(self, rows: Array) -> Array:
        """``rows`` has the CPUs as its first dimension."""
        total = rows.sum(axis=0, dtype=np.uint64) if self._cpu is None else rows[self._cpu].copy()
        return np.asarray(total)

    def _fields(self, name: str) -> dict[str, Array]:
        """Each counter of a table as an array over its columns."""
        with self._source.maps[name].mmap(writable=False) as mapped:
            rows = mapped.array.reshape(self._source.layout.cpus, -1)
            names = [each for each in rows.dtype.names or () if rows.dtype[each].base.kind == "u"]
            return {each: self._of_cpu(rows[each]) for each in names}

    def _backend_flows(self) -> Array:
        with self._source.maps["backend_flows"].mmap(writable=False) as mapped:
            return self._of_cpu(mapped.array.reshape(self._source.layout.cpus, -1))

    def _backend_drops(self) -> dict[int, dict[str, int]]:
        found: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for key, packets in self._source.maps["backend_drops"].items():
            number = int(packets.sum() if self._cpu is None else packets[self._cpu])
            if number:
                found[int(key["handle"])][self._names[int(key["verdict"])]] = number
        return found

    def verdicts(self) -> dict[str, int]:
        """The packets of each verdict."""
        with self._source.maps["verdict_cpus"].mmap(writable=False) as mapped:
            packets = self._of_cpu(mapped.array["packets"])
        return {name: int(packets[number]) for number, name in self._names.items()}

    def dropped(self, reasons: Array) -> dict[str, int]:
        """A service's drops by the names of their verdicts."""
        return {
            self._names[self._first_drop + int(at)]: int(reasons[at])
            for at in np.flatnonzero(reasons)
        }


def read_counters(
    source: TableSource,
    backends: BackendTable,
    services: Iterable[Installed],
    named: Mapping[ServiceKey, Service],
    cpu: int | None = None,
) -> Counters:
    """Read everything at once, of all CPUs or of one; no system call per counter.

    ``named``: the services with their names. How many flows are active isn't counted here.
    """
    reader = _Reader(source, cpu)

    def traffic(address: Address, handle: int) -> BackendCounters:
        at = backends.index(handle)
        return BackendCounters(
            address=address,
            packets=int(reader.backends["packets"][at]),
            bytes=int(reader.backends["bytes"][at]),
            flows=int(reader.backend_flows[at]),
            dropped=reader.backend_drops.get(handle, {}),
        )

    def counted(service: Installed) -> ServiceCounters:
        at = service.index
        return ServiceCounters(
            service=ServiceName.of(named[service.key]),
            packets=int(reader.services["packets"][at]),
            bytes=int(reader.services["bytes"][at]),
            flows=int(reader.services["flows"][at]),
            drops=int(reader.services["drops"][at]),
            backends=tuple(traffic(*each) for each in service.handles.items()),
            dropped=reader.dropped(reader.services["dropped"][at]),
            replies=int(reader.replies["packets"][at]),
            reply_bytes=int(reader.replies["bytes"][at]),
        )

    return Counters(reader.verdicts(), tuple(map(counted, services)))


def read_verdicts(source: TableSource) -> dict[str, int]:
    """Return the packets of each verdict, of all CPUs."""
    with source.maps["verdict_cpus"].mmap(writable=False) as mapped:
        totals = mapped.array["packets"].sum(axis=0, dtype=np.uint64)
    return {name: int(totals[number]) for number, name in verdict_names(source).items()}
