# SPDX-License-Identifier: Apache-2.0
"""A load balancer's metrics, rendered from the kernel's counters as arrays.

Thousands of services have a hundred thousand samples. No object is made for any of them: a
family is one column of numbers beside one of labels, which are text already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from prometheus_client.core import GaugeMetricFamily

from towpath.agent.http.exposition import ready_counter, ready_gauge
from towpath.agent.lb.labels import Labels, TargetLabels

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from towpath.agent.health.registry import Record
    from towpath.agent.lb.labels import Label, Rows
    from towpath.datapath.observe.counters import Readings, Totals
    from towpath.model import Service

    Array = np.ndarray[Any, Any]

_ACTIVE = "Flows that are remembered and were seen in the last five minutes."
_VOLUME = "Their bytes, of IP packets before encapsulation."


class Flows(NamedTuple):
    """How many flows each handle has that were seen lately."""

    plain: Mapping[int, int]
    translated: Mapping[int, int]
    local: Container[int] = ()
    """Handles of backends on this node, whose flows are not translated as others' are."""

    def of(self, rows: Rows) -> Array:
        """The flows of each backend."""
        found = (
            (self.plain if not translated or handle in self.local else self.translated).get(
                handle, 0
            )
            for handle, translated in zip(
                rows.handles.tolist(), rows.translated.tolist(), strict=True
            )
        )
        return np.fromiter(found, np.int64, len(rows.handles))


class Checks(NamedTuple):
    """What is known of backends that are checked, and how late checks began lately."""

    records: Sequence[Record]
    delay: float
    """Seconds."""


class DatapathMetrics:
    """Renders metrics, and keeps labels from one scrape to the next. For one thread at a time.

    ``backends``: whether there are series of each backend.
    """

    def __init__(self, *, backends: bool = True) -> None:
        self._backends = backends
        self._labels = Labels()
        self._targets = TargetLabels()

    def render(
        self,
        services: tuple[Service, ...],
        read: Readings,
        flows: Flows,
        checks: Checks,
    ) -> Iterator[Metric]:
        """All families: ``services`` are those desired."""
        rows, totals = self._labels.rows(services, read.places), read.totals
        active = flows.of(rows)
        yield _verdicts(totals.verdicts)
        yield from _services(rows, totals, active)
        if self._backends:
            yield from _backends(rows, totals, active)
            yield _reached(rows, read.unreached)
            yield from self._checks(checks.records)
        yield GaugeMetricFamily(
            "towpath_check_delay_seconds",
            "How late a health check began, the latest of the last minute or two.",
            value=checks.delay,
        )

    def _checks(self, checked: Sequence[Record]) -> Iterator[Metric]:
        labels = self._targets.of(checked)
        yield ready_gauge(
            "towpath_backend_health",
            "1 for a backend whose health check has it get new flows, 0 for one that is down.",
            _texts(labels),
            [int(record.standing.state.serves) for record in checked],
        )
        yield ready_counter(
            "towpath_backend_checks",
            "Health checks by how they ended; unmade: this node could not make them.",
            (
                label.having("result", result)
                for label in labels
                for result in ("passed", "failed", "unmade")
            ),
            (
                number
                for record in checked
                for number in (record.passed, record.failed, record.unmade)
            ),
        )
        yield ready_gauge(
            "towpath_backend_certificate_expiry_seconds",
            "When the certificate that a check was shown last is no longer valid, since 1970.",
            [
                text
                for text, record in zip(_texts(labels), checked, strict=True)
                if record.expires is not None
            ],
            [int(record.expires) for record in checked if record.expires is not None],
        )


def _verdicts(verdicts: Mapping[str, int]) -> Metric:
    labels = [f'{{reason="{reason}"}} ' for reason in verdicts]
    meaning = "Packets by what became of them."
    return ready_counter("towpath_verdict_packets", meaning, labels, verdicts.values())


def _services(rows: Rows, totals: Totals, active: Array) -> Iterator[Metric]:
    columns = [
        ("packets", "Packets that came in for a service.", totals.services["packets"]),
        ("bytes", _VOLUME, totals.services["bytes"]),
        (
            "flows",
            "Packets that no entry of the flow table matched: new flows, mostly.",
            totals.services["flows"],
        ),
        ("drops", "Packets for a service that could not be sent on.", totals.services["drops"]),
        (
            "replies",
            "Packets of backends that were translated back to clients.",
            totals.replies["packets"],
        ),
        ("reply_bytes", "Their bytes.", totals.replies["bytes"]),
    ]
    for name, meaning, numbers in columns:
        counted = numbers[rows.indexes].tolist()
        yield ready_counter(f"towpath_service_{name}", meaning, _texts(rows.services), counted)
    sums = np.zeros(len(rows.services), np.int64)
    np.add.at(sums, rows.owners, active)
    yield ready_gauge("towpath_service_active_flows", _ACTIVE, _texts(rows.services), sums.tolist())
    if rows.routes:
        counted = totals.services["flows"][rows.route_indexes].tolist()
        meaning = "New flows that went by a route of their sources."
        yield ready_counter("towpath_service_route_flows", meaning, rows.routes, counted)
    yield _service_drops(rows, totals)
    yield _service_quic(rows, totals)


def _service_drops(rows: Rows, totals: Totals) -> Metric:
    reasons = totals.services["dropped"][rows.indexes]
    found = [
        (rows.services[at].having("reason", name), packets)
        for at in np.flatnonzero(reasons.any(axis=1)).tolist()
        for name, packets in totals.dropped(reasons[at]).items()
    ]
    meaning = "The drops by reason; a reason is there from its first packet on."
    return _pairs("towpath_service_dropped_packets", meaning, found)


def _service_quic(rows: Rows, totals: Totals) -> Metric:
    counted = np.sum([*totals.quic.values()], axis=0)[rows.indexes]
    found = [
        (rows.services[at].having("said", name), int(numbers[rows.indexes[at]]))
        for at in np.flatnonzero(counted).tolist()
        for name, numbers in totals.quic.items()
    ]
    meaning = (
        "Packets of a service with quic by what their connection id has said, from the first on."
    )
    return _pairs("towpath_service_quic_packets", meaning, found)


def _backends(rows: Rows, totals: Totals, active: Array) -> Iterator[Metric]:
    at = totals.indexes(rows.handles)
    columns = [
        ("packets", "Packets sent to a backend.", totals.backends["packets"]),
        ("bytes", _VOLUME, totals.backends["bytes"]),
        ("flows", "New flows that a backend was given.", totals.backend_flows),
    ]
    for name, meaning, numbers in columns:
        counted = numbers[at].tolist()
        yield ready_counter(f"towpath_backend_{name}", meaning, _texts(rows.backends), counted)
    yield ready_gauge(
        "towpath_backend_active_flows", _ACTIVE, _texts(rows.backends), active.tolist()
    )
    yield _backend_drops(rows, totals)


def _reached(rows: Rows, unreached: Collection[int]) -> Metric:
    lost = np.isin(rows.handles, np.fromiter(unreached, np.uint32, len(unreached)))
    return ready_gauge(
        "towpath_backend_reached",
        "1 for a backend that there is a way to, 0 for one without a route or an answering next"
        " hop.",
        _texts(rows.backends),
        (~lost).astype(int).tolist(),
    )


def _backend_drops(rows: Rows, totals: Totals) -> Metric:
    drops = totals.backend_drops
    dropping = np.isin(rows.handles, np.fromiter(drops, np.uint32, len(drops)))
    found = [
        (rows.backends[at].having("reason", name), packets)
        for at in np.flatnonzero(dropping).tolist()
        for name, packets in drops[int(rows.handles[at])].items()
    ]
    meaning = "Packets for a backend that could not be sent, each reason from its first packet on."
    return _pairs("towpath_backend_dropped_packets", meaning, found)


def _texts(labels: Iterable[Label]) -> Iterator[str]:
    return (label.text for label in labels)


def _pairs(name: str, meaning: str, found: Sequence[tuple[str, int]]) -> Metric:
    return ready_counter(
        name, meaning, [label for label, _ in found], [number for _, number in found]
    )
