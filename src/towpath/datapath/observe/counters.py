# SPDX-License-Identifier: Apache-2.0
"""What the program has counted, on one CPU or summed over all."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towpath.documents import BackendCounters, Counters, ServiceCounters, ServiceName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.backends import BackendTable
    from towpath.datapath.lb.services import Installed, Place
    from towpath.datapath.maps.source import TableSource
    from towpath.model.service import Service, ServiceKey

    Array = np.ndarray[Any, Any]

_PREFIX = "VERDICT_"
_FIRST_DROP = "DROP_NO_BACKEND"
_DROP = "drop_"


def verdict_names(source: TableSource) -> dict[int, str]:
    """Return ``enum verdict`` as lower-case names without their prefix."""
    members = source.btf.enum("verdict")
    return {
        int(member): name.removeprefix(_PREFIX).lower()
        for name, member in members.__members__.items()
        if name != f"{_PREFIX}MAX"
    }


@dataclass(frozen=True, slots=True)
class Totals:
    """What is counted on one CPU, or the sums over all: arrays by index, of one moment.

    ``services``, ``replies``, ``quic`` and ``backends``: a uint64 array for each counter, by the
    index of a service or a backend; ``backend_flows`` by that of a backend. ``backend_drops``:
    packets by handle and verdict. ``reasons``: names of the columns of a service's ``dropped``.
    """

    verdicts: dict[str, int]
    services: dict[str, Array]
    replies: dict[str, Array]
    quic: dict[str, Array]
    backends: dict[str, Array]
    backend_flows: Array
    backend_drops: dict[int, dict[str, int]]
    reasons: dict[int, str]
    index_mask: int

    @classmethod
    def read(cls, source: TableSource, cpu: int | None = None) -> Totals:
        """Read everything at once; no system call per counter."""
        names = verdict_names(source)
        reader = _Reader(source, cpu, names)
        first = source.constant("verdict", f"{_PREFIX}{_FIRST_DROP}")
        return cls(
            verdicts=reader.verdicts(),
            services=reader.fields("service_cpus"),
            replies=reader.fields("reply_cpus"),
            quic=reader.fields("quic_cpus"),
            backends=reader.fields("backend_cpus"),
            backend_flows=reader.backend_flows(),
            backend_drops=reader.backend_drops(),
            reasons={number - first: name for number, name in names.items()},
            index_mask=(1 << source.constant("handle_bits", "HANDLE_INDEX_BITS")) - 1,
        )

    def indexes(self, handles: Array) -> Array:
        """The indexes that are in handles of backends."""
        return handles & np.uint32(self.index_mask)

    def said(self, service: int) -> dict[str, int]:
        """Packets of a service by what their connection ids have said."""
        return {name: int(numbers[service]) for name, numbers in self.quic.items()}

    def dropped(self, reasons: Array) -> dict[str, int]:
        """A service's drops by the names of their verdicts."""
        return {self.reasons[at]: int(reasons[at]) for at in np.flatnonzero(reasons).tolist()}


class _Reader:
    """Reads the tables of one CPU, or the sums over all."""

    def __init__(self, source: TableSource, cpu: int | None, names: Mapping[int, str]) -> None:
        self._source = source
        self._cpu = cpu
        self._names = names

    def _of_cpu(self, rows: Array) -> Array:
        """``rows`` has the CPUs as its first dimension."""
        total = rows.sum(axis=0, dtype=np.uint64) if self._cpu is None else rows[self._cpu].copy()
        return np.asarray(total)

    def fields(self, name: str) -> dict[str, Array]:
        """Each counter of a table as an array over its columns."""
        with self._source.maps[name].mmap(writable=False) as mapped:
            rows = mapped.array.reshape(self._source.layout.cpus, -1)
            names = [each for each in rows.dtype.names or () if rows.dtype[each].base.kind == "u"]
            return {each: self._of_cpu(rows[each]) for each in names}

    def backend_flows(self) -> Array:
        """New flows by a backend's index."""
        with self._source.maps["backend_flows"].mmap(writable=False) as mapped:
            return self._of_cpu(mapped.array.reshape(self._source.layout.cpus, -1))

    def backend_drops(self) -> dict[int, dict[str, int]]:
        """Packets by handle and verdict; those that there were any of."""
        found: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for key, packets in self._source.maps["backend_drops"].items():
            number = int(packets.sum() if self._cpu is None else packets[self._cpu])
            if number:
                found[int(key["handle"])][self._names[int(key["verdict"])]] = number
        return dict(found)

    def verdicts(self) -> dict[str, int]:
        """The packets of each verdict."""
        with self._source.maps["verdict_cpus"].mmap(writable=False) as mapped:
            packets = self._of_cpu(mapped.array["packets"])
        return {name: int(packets[number]) for number, name in self._names.items()}


def drops(source: TableSource, services: Sequence[int] | None = None) -> int:
    """Return how many packets were dropped, of services with these indexes; None: of all."""
    if services is None:
        counted = _Reader(source, None, verdict_names(source)).verdicts()
        return sum(number for name, number in counted.items() if name.startswith(_DROP))
    with source.maps["service_cpus"].mmap(writable=False) as mapped:
        rows = mapped.array.reshape(source.layout.cpus, -1)
        return int(rows["drops"][:, list(services)].sum())


class Readings(NamedTuple):
    """What is counted, and of whom."""

    places: tuple[Place, ...]
    totals: Totals
    unreached: frozenset[int] = frozenset()
    """Handles of backends that packets don't get to."""
    local: frozenset[int] = frozenset()
    """Those of backends on this node."""


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
    totals = Totals.read(source, cpu)

    def traffic(address: Address, handle: int) -> BackendCounters:
        at = backends.index(handle)
        return BackendCounters(
            address=address,
            packets=int(totals.backends["packets"][at]),
            bytes=int(totals.backends["bytes"][at]),
            flows=int(totals.backend_flows[at]),
            dropped=totals.backend_drops.get(handle, {}),
        )

    def counted(service: Installed) -> ServiceCounters:
        at = service.index
        return ServiceCounters(
            service=ServiceName.of(named[service.key]),
            packets=int(totals.services["packets"][at]),
            bytes=int(totals.services["bytes"][at]),
            flows=int(totals.services["flows"][at]),
            drops=int(totals.services["drops"][at]),
            backends=tuple(traffic(*each) for each in service.noted.items()),
            dropped=totals.dropped(totals.services["dropped"][at]),
            replies=int(totals.replies["packets"][at]),
            reply_bytes=int(totals.replies["bytes"][at]),
            quic=totals.said(at) if service.options.quic else {},
        )

    return Counters(totals.verdicts, tuple(map(counted, services)))


def read_verdicts(source: TableSource) -> dict[str, int]:
    """Return the packets of each verdict, of all CPUs."""
    with source.maps["verdict_cpus"].mmap(writable=False) as mapped:
        totals = mapped.array["packets"].sum(axis=0, dtype=np.uint64)
    return {name: int(totals[number]) for number, name in verdict_names(source).items()}
