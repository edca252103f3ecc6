# SPDX-License-Identifier: Apache-2.0
"""What the planner and the datapath say, as the API's documents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from towpath.agent import documents
from towpath.core.states import BackendKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.core.leaving import LeavingByKey
    from towpath.core.plan import Plan, ServiceChange
    from towpath.datapath.counters import Counters, ServiceCounters
    from towpath.datapath.trace import Trace
    from towpath.model import Address, Backend, Service


def plan(made: Plan) -> documents.Plan:
    """A plan; of its steps only the number, which is what an operator asks for."""
    changes = tuple(_change(change) for change in made.changes)
    return documents.Plan(changes, len(made.steps), made.moved)


def counters(read: Counters, services: Iterable[Service]) -> documents.Counters:
    """Counters of the services given; what is only in the kernel has no name."""
    return documents.Counters(
        read.verdicts,
        tuple(
            _service_counters(service, read.services[service.key])
            for service in services
            if service.key in read.services
        ),
    )


def flows(
    service: Service, counted: Mapping[BackendKey, int], leaving: LeavingByKey
) -> tuple[documents.BackendFlows, ...]:
    """Flows of a service's backends, those that are leaving among them."""
    keys = [BackendKey(service.key, each.address) for each in service.backends]
    times = [leaving.get(key) for key in keys]
    return tuple(
        documents.BackendFlows(
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
        slot=ran.slot,
        table_size=ran.table_size,
        backend=ran.backend,
        encapsulation=ran.encapsulation,
        outer_source=ran.outer_source,
        fib_result=ran.fib_result,
        egress=ran.egress,
        vlan=ran.vlan,
        source_mac=ran.source_mac,
        next_hop_mac=ran.next_hop_mac,
        mtu=ran.mtu,
    )


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
        moved=change.moved,
    )


def _addresses(backends: Iterable[Backend]) -> tuple[Address, ...]:
    return tuple(backend.address for backend in backends)


def _service_counters(service: Service, read: ServiceCounters) -> documents.ServiceCounters:
    return documents.ServiceCounters(
        service=_named(service),
        packets=read.packets,
        bytes=read.bytes,
        flows=read.flows,
        drops=read.drops,
        backends=tuple(
            documents.BackendCounters(address, traffic.packets, traffic.bytes)
            for address, traffic in read.backends.items()
        ),
    )
