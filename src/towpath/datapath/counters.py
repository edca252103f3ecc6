# SPDX-License-Identifier: Apache-2.0
"""What the program has counted, summed over the CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.datapath.backends import BackendTable
    from towpath.datapath.program import LoadedProgram
    from towpath.datapath.tables import Installed
    from towpath.model.service import ServiceKey

_PREFIX = "VERDICT_"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets, and bytes of the IP packets before they were encapsulated."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ServiceCounters:
    """One service. ``flows``: packets that the flow table didn't know, so new flows mostly."""

    packets: int
    bytes: int
    flows: int
    drops: int
    backends: dict[Address, Traffic]
    replies: int = 0
    """What backends answered, of services that are forwarded by source NAT."""
    reply_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """``verdicts``: packets by the name of their verdict, which every packet has one of."""

    verdicts: dict[str, int]
    services: dict[ServiceKey, ServiceCounters]


def verdict_names(program: LoadedProgram) -> dict[int, str]:
    """Return ``enum verdict`` as lower-case names without their prefix."""
    members = program.btf.enum("verdict")
    return {
        int(member): name.removeprefix(_PREFIX).lower()
        for name, member in members.__members__.items()
        if name != f"{_PREFIX}MAX"
    }


def _sums(program: LoadedProgram, name: str, columns: int) -> dict[str, Any]:
    """Return each counter of a per-CPU table as an array over its columns."""
    with program.maps[name].mmap(writable=False) as mapped:
        rows = mapped.array.reshape(program.layout.cpus, columns)
        fields = [field for field in rows.dtype.names or () if rows.dtype[field].kind == "u"]
        return {field: rows[field].sum(axis=0, dtype=np.uint64) for field in fields}


def read_counters(
    program: LoadedProgram, backends: BackendTable, services: Iterable[Installed]
) -> Counters:
    """Read everything at once; no system call per counter."""
    size = program.layout.entries
    by_service = _sums(program, "service_cpus", size["services"])
    by_reply = _sums(program, "reply_cpus", size["services"])
    by_backend = _sums(program, "backend_cpus", size["backends"])

    def traffic(handle: int) -> Traffic:
        at = backends.index(handle)
        return Traffic(int(by_backend["packets"][at]), int(by_backend["bytes"][at]))

    def counted(service: Installed) -> ServiceCounters:
        at = service.index
        return ServiceCounters(
            packets=int(by_service["packets"][at]),
            bytes=int(by_service["bytes"][at]),
            flows=int(by_service["flows"][at]),
            drops=int(by_service["drops"][at]),
            backends={address: traffic(handle) for address, handle in service.handles.items()},
            replies=int(by_reply["packets"][at]),
            reply_bytes=int(by_reply["bytes"][at]),
        )

    return Counters(read_verdicts(program), {each.key: counted(each) for each in services})


def read_verdicts(program: LoadedProgram) -> dict[str, int]:
    """Return the packets of each verdict."""
    with program.maps["verdict_cpus"].mmap(writable=False) as mapped:
        totals = mapped.array["packets"].sum(axis=0, dtype=np.uint64)
    return {name: int(totals[number]) for number, name in verdict_names(program).items()}
