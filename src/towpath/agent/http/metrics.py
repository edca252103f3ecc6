# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, read from the kernel's per-CPU maps when they are asked for.

Nothing is counted here and nothing is kept between two scrapes.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from towpath.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from towpath.api.documents import Check, Counters, DeviceStatus, ServiceName, Status
    from towpath.model import Address

log = logging.getLogger(__name__)

SERVICE = ("service", "vip", "port", "protocol")
BACKEND = (*SERVICE, "backend")
_ACTIVE = "Flows that are remembered and were seen in the last five minutes."


class _Collector(Collector):
    """Metrics of what it calls at every scrape."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        return self._read()


def registry(read: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """A registry of what ``read`` gives at every scrape, and nothing that is not Towpath's."""
    # The collector's description would be its metrics: don't read the kernel for that.
    made = CollectorRegistry(auto_describe=False)
    made.register(_Collector(read))
    return made


def datapath_metrics(counters: Counters, checks: Iterable[Check]) -> Iterator[Metric]:
    """Metrics of a load balancer."""
    yield _verdicts(counters)
    yield from _services(counters)
    yield from _backends(counters)
    yield from _health(checks)


@contextmanager
def served(address: tuple[Address, int] | None, metrics: CollectorRegistry) -> Iterator[None]:
    """Serve metrics over HTTP on an address of their own; None: don't.

    Apart from the API, which never listens on anything but its unix socket.
    """
    if address is None:
        yield
        return
    host, port = address
    try:
        server, thread = start_http_server(port, str(host), metrics)
    except OSError as error:
        raise AgentError(
            f"metrics.listen: can't listen on {host} port {port}: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _verdicts(counters: Counters) -> Metric:
    family = CounterMetricFamily(
        "towpath_verdict_packets", "Packets by what became of them.", labels=("reason",)
    )
    for reason, packets in counters.verdicts.items():
        family.add_metric((reason,), packets)
    return family


def _services(counters: Counters) -> Iterator[Metric]:
    meanings = {
        "packets": "Packets that came in for a service.",
        "bytes": "Their bytes, of IP packets before encapsulation.",
        "flows": "Packets that no entry of the flow table matched: new flows, mostly.",
        "drops": "Packets for a service that could not be sent on.",
        "replies": "Packets of backends that were translated back to clients.",
        "reply_bytes": "Their bytes.",
    }
    for name, meaning in meanings.items():
        family = CounterMetricFamily(f"towpath_service_{name}", meaning, labels=SERVICE)
        for service in counters.services:
            family.add_metric(_labels(service.service), getattr(service, name))
        yield family
    active = GaugeMetricFamily("towpath_service_active_flows", _ACTIVE, labels=SERVICE)
    reasons = CounterMetricFamily(
        "towpath_service_dropped_packets",
        "The drops by reason; a reason is there from its first packet on.",
        labels=(*SERVICE, "reason"),
    )
    for service in counters.services:
        labels = _labels(service.service)
        active.add_metric(labels, service.active or 0)
        for reason, packets in service.dropped.items():
            reasons.add_metric((*labels, reason), packets)
    yield active
    yield reasons


def _backends(counters: Counters) -> Iterator[Metric]:
    packets, volume, flows = (
        CounterMetricFamily(f"towpath_backend_{name}", meaning, labels=BACKEND)
        for name, meaning in (
            ("packets", "Packets sent to a backend."),
            ("bytes", "Their bytes, of IP packets before encapsulation."),
            ("flows", "New flows that a backend was given."),
        )
    )
    active = GaugeMetricFamily("towpath_backend_active_flows", _ACTIVE, labels=BACKEND)
    reasons = CounterMetricFamily(
        "towpath_backend_dropped_packets",
        "Packets for a backend that could not be sent, each reason from its first packet on.",
        labels=(*BACKEND, "reason"),
    )
    for service in counters.services:
        labels = _labels(service.service)
        for backend in service.backends:
            mine = (*labels, str(backend.address))
            packets.add_metric(mine, backend.packets)
            volume.add_metric(mine, backend.bytes)
            flows.add_metric(mine, backend.flows)
            active.add_metric(mine, backend.active or 0)
            for reason, dropped in backend.dropped.items():
                reasons.add_metric((*mine, reason), dropped)
    yield from (packets, volume, flows, active, reasons)


def _health(checks: Iterable[Check]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "towpath_backend_health",
        "1 for a backend whose health check has it get new flows, 0 for one that is down.",
        labels=BACKEND,
    )
    results = CounterMetricFamily(
        "towpath_backend_checks",
        "Health checks by how they ended; unmade: this node could not make them.",
        labels=(*BACKEND, "result"),
    )
    for check in checks:
        mine = (*_labels(check.service), str(check.backend))
        up.add_metric(mine, int(check.serves))
        for result in ("passed", "failed", "unmade"):
            results.add_metric((*mine, result), getattr(check, result))
    yield up
    yield results


def host_metrics(devices: Iterable[DeviceStatus], followed: Mapping[str, int]) -> Iterator[Metric]:
    """Metrics of devices, and of what was put right that others had done."""
    attached = GaugeMetricFamily(
        "towpath_device_attached",
        "1 for a device whose packets are balanced, 0 for one that is missing or refuses.",
        labels=("device",),
    )
    for device in devices:
        attached.add_metric((device.name,), int(device.index is not None))
    yield attached
    repairs = CounterMetricFamily(
        "towpath_repairs",
        "How often something was put back that others had taken away, or set otherwise.",
        labels=("what",),
    )
    for what, times in followed.items():
        if what != "resyncs":
            repairs.add_metric((what,), times)
    yield repairs
    yield CounterMetricFamily(
        "towpath_resyncs",
        "How often all devices were asked for again, since changes of them were lost.",
        value=followed["resyncs"],
    )


def agent_metrics(status: Status) -> Iterator[Metric]:
    """Metrics of the agent itself."""
    yield InfoMetricFamily("towpath_agent", "This agent.", value={"version": status.version})
    used = GaugeMetricFamily("towpath_used", "Of a limit, what is taken.", labels=("limit",))
    limits = GaugeMetricFamily("towpath_limit", "Room that is reserved.", labels=("limit",))
    for name, use in status.limits.items():
        used.add_metric((name,), use.used)
        limits.add_metric((name,), use.limit)
    yield used
    yield limits
    yield GaugeMetricFamily(
        "towpath_config_refused",
        "1 while the configuration file has a content that was refused.",
        value=int(status.file.refused is not None),
    )
    yield GaugeMetricFamily(
        "towpath_agent_resident_bytes", "Memory of the agent.", value=status.resident_bytes
    )


def _labels(service: ServiceName) -> tuple[str, str, str, str]:
    return service.name, str(service.vip), str(service.port), str(service.protocol)
