# SPDX-License-Identifier: Apache-2.0
"""What the planner and the datapath say, as the API's documents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from towpath.api import documents
from towpath.core.lb.states import BackendKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.agent.flows import Active
    from towpath.agent.health.registry import Record
    from towpath.core.lb.leaving import LeavingByKey
    from towpath.core.lb.plan import Plan, ServiceChange
    from towpath.datapath.observe.counters import Counters, ServiceCounters
    from towpath.datapath.observe.trace import Trace
    from towpath.model import Address, Backend, Service


def plan(made: Plan) -> documents.Plan:
    """A plan; of its steps only the number, which is what an operator asks for."""
    changes = tuple(_change(change) for change in made.changes)
    return documents.Plan(changes, len(made.steps), made.moved)


def counters(
    read: Counters,
    services: Iterable[Service],
    active: Active,
    cpus: Sequence[Counters] = (),
) -> documents.Counters:
    """Counters of the services given; what is only in the kernel has no name.

    ``cpus``: the same by CPU, of which only the verdicts are told here.
    """
    return documents.Counters(
        read.verdicts,
        tuple(
            service_counters(service, read, active)
            for service in services
            if service.key in read.services
        ),
        tuple(documents.CpuVerdicts(cpu, each.verdicts) for cpu, each in enumerate(cpus)),
    )


def service_counters(
    service: Service, read: Counters, active: Active, cpus: Sequence[Counters] = ()
) -> documents.ServiceCounters:
    """Counters of a service that is in the kernel."""
    counted, flows = read.services[service.key], active.get(service.key, {})
    return documents.ServiceCounters(
        service=_named(service),
        packets=counted.packets,
        bytes=counted.bytes,
        flows=counted.flows,
        drops=counted.drops,
        backends=_backend_counters(counted, flows),
        active=sum(flows.values()),
        dropped=counted.dropped,
        cpus=tuple(_cpu(cpu, each.services[service.key]) for cpu, each in enumerate(cpus)),
        replies=counted.replies,
        reply_bytes=counted.reply_bytes,
    )


def backend_status(
    service: Service, counted: Mapping[BackendKey, int], leaving: LeavingByKey
) -> tuple[documents.BackendStatus, ...]:
    """State and flows of a service's backends, those that are leaving among them."""
    keys = [BackendKey(service.key, each.address) for each in service.backends]
    times = [leaving.get(key) for key in keys]
    return tuple(
        documents.BackendStatus(
            backend.address,
            backend.state,
            counted.get(key, 0),
            leaving=gone is not None,
            since=moment(gone.since) if gone else None,
            until=moment(gone.until) if gone else None,
        )
        for backend, key, gone in zip(service.backends, keys, times, strict=True)
    )


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 with an offset, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def trace(ran: Trace, services: Iterable[Service]) -> documents.Trace:
    """A trace, its service by the name it has among services."""
    found = next((each for each in services if each.key == ran.service), None)
    return documents.Trace(
        flow=str(ran.flow),
        device=ran.device,
        verdict=ran.verdict,
        service=None if found is None else _named(found),
        hash=ran.hash,
        flow_hit=ran.flow_hit,
        client_hit=ran.client_hit,
        slot=ran.slot,
        table_size=ran.table_size,
        backend=ran.backend,
        forwarding=ran.forwarding,
        encapsulation=ran.encapsulation,
        outer_source=ran.outer_source,
        source_port=ran.source_port,
        destination_port=ran.destination_port,
        fib_result=ran.fib_result,
        egress=ran.egress,
        vlan=ran.vlan,
        source_mac=ran.source_mac,
        next_hop_mac=ran.next_hop_mac,
        mtu=ran.mtu,
    )


def check(record: Record) -> documents.Check:
    """What is known of a backend that is checked."""
    target, standing = record.target, record.standing
    return documents.Check(
        service=documents.ServiceName(
            target.service, target.key.vip, target.key.port, target.key.protocol
        ),
        backend=target.backend,
        type=target.health.type,
        state=standing.state,
        since=_time(standing.since),
        error=standing.error,
        checked=None if standing.checked is None else _time(standing.checked),
        passed=record.passed,
        failed=record.failed,
        unmade=record.unmade,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _named(service: Service) -> documents.ServiceName:
    return documents.ServiceName(service.name, service.vip, service.port, service.protocol)


def _change(change: ServiceChange) -> documents.ServiceChange:
    return documents.ServiceChange(
        action=change.action,
        service=_named(change.service),
        fields=change.fields,
        backends_added=_addresses(change.backends_added),
        backends_removed=_addresses(change.backends_removed),
        backends_leaving=_addresses(change.backends_leaving),
        backends_reweighted=_addresses(change.backends_reweighted),
        backends_restated=_addresses(change.backends_restated),
        backends_redirected=_addresses(change.backends_redirected),
        moved=change.moved,
    )


def _addresses(backends: Iterable[Backend]) -> tuple[Address, ...]:
    return tuple(backend.address for backend in backends)


def _backend_counters(
    counted: ServiceCounters, flows: Mapping[Address, int] | None = None
) -> tuple[documents.BackendCounters, ...]:
    """Of each backend; ``flows`` has those that are active, where that is known."""
    return tuple(
        documents.BackendCounters(
            address=address,
            packets=traffic.packets,
            bytes=traffic.bytes,
            flows=traffic.flows,
            active=None if flows is None else flows.get(address, 0),
            dropped=traffic.dropped,
        )
        for address, traffic in counted.backends.items()
    )


def _cpu(cpu: int, counted: ServiceCounters) -> documents.CpuCounters:
    return documents.CpuCounters(
        cpu=cpu,
        packets=counted.packets,
        bytes=counted.bytes,
        flows=counted.flows,
        drops=counted.drops,
        dropped=counted.dropped,
        backends=_backend_counters(counted),
    )
