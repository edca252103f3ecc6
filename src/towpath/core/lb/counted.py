# SPDX-License-Identifier: Apache-2.0
"""What is read of the kernel made into one: counters, flows, who is terminating."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from towpath.core.lb.states import BackendKey
from towpath.documents import (
    BackendStatus,
    Counters,
    CpuCounters,
    CpuVerdicts,
    ServiceCounters,
    ServiceName,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from towpath.core.lb.terminating import TerminatingByKey
    from towpath.model.kinds import Address
    from towpath.model.service import Service, ServiceKey

    Active = Mapping[ServiceKey, Mapping[Address, int]]


def with_active(
    read: Counters, services: Iterable[Service], active: Active, cpus: Sequence[Counters] = ()
) -> Counters:
    """Return the counters of the services given, in their order, with their flows.

    ``cpus``: the same by CPU, of which only the verdicts are told here.
    """
    counted = {each.service.key: each for each in read.services}
    return Counters(
        read.verdicts,
        tuple(
            _with_active(service, counted[service.key], active)
            for service in services
            if service.key in counted
        ),
        tuple(CpuVerdicts(cpu, each.verdicts) for cpu, each in enumerate(cpus)),
        read.refused,
        read.local,
    )


def service_with_active(
    service: Service, read: Counters, active: Active, cpus: Sequence[Counters] = ()
) -> ServiceCounters:
    """Return the counters of one service, and those by CPU. NotFoundError: there are none."""
    found = _with_active(service, read.service(service.key), active)
    by_cpu = (each.service(service.key) for each in cpus)
    return replace(found, cpus=tuple(_cpu(cpu, each) for cpu, each in enumerate(by_cpu)))


def _with_active(service: Service, counted: ServiceCounters, active: Active) -> ServiceCounters:
    flows = active.get(service.key, {})
    return replace(
        counted,
        service=ServiceName.of(service),
        backends=tuple(
            replace(each, active=flows.get(each.address, 0)) for each in counted.backends
        ),
        active=sum(flows.values()),
    )


def _cpu(cpu: int, counted: ServiceCounters) -> CpuCounters:
    return CpuCounters(
        cpu=cpu,
        packets=counted.packets,
        bytes=counted.bytes,
        flows=counted.flows,
        drops=counted.drops,
        dropped=counted.dropped,
        backends=counted.backends,
    )


def backend_status(
    service: Service,
    counted: Mapping[BackendKey, int],
    terminating: TerminatingByKey,
    troubles: Mapping[BackendKey, str],
    local: Container[BackendKey] = (),
) -> tuple[BackendStatus, ...]:
    """State and flows of a service's backends, those that are terminating among them.

    ``troubles``: why packets don't get to those that they don't get to; ``local``: those that are
    on this node.
    """
    keys = [BackendKey(service.key, each.address) for each in service.backends]
    times = [terminating.get(key) for key in keys]
    return tuple(
        BackendStatus(
            backend.address,
            backend.state,
            counted.get(key, 0),
            leaving=gone is not None,
            since=moment(gone.since) if gone else None,
            until=moment(gone.until) if gone else None,
            trouble=troubles.get(key),
            local=key in local,
        )
        for backend, key, gone in zip(service.backends, keys, times, strict=True)
    )


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 with an offset, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
