# SPDX-License-Identifier: Apache-2.0
"""Metrics of services at the socket, of thousands of them from columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from towpath.agent.http.exposition import escaped, ready_counter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from towpath.datapath.socket.counters import Reading
    from towpath.documents import SocketPackets

_ALWAYS = "balanced"
"""A service's calls of other verdicts are there from the first on."""


def socket_metrics(read: Reading, ended: int, *, backends: bool = True) -> Iterator[Metric]:
    """Metrics of sockets. ``backends``: whether there are series of each backend."""
    calls = CounterMetricFamily(
        "towpath_socket_calls", "Calls by hook and what became of them.", labels=("hook", "verdict")
    )
    for hook, verdicts in read.verdicts.items():
        for verdict, number in verdicts.items():
            calls.add_metric((hook, verdict), number)
    yield calls
    names = [escaped(each or str(at.key)) for each, at in zip(read.names, read.places, strict=True)]
    yield _of_services(read, names)
    if backends:
        yield _of_backends(read, names)
    yield CounterMetricFamily(
        "towpath_socket_stale_ended",
        "Connected sockets that were ended since their backend had gone.",
        value=ended,
    )


def _of_services(read: Reading, names: list[str]) -> Metric:
    found = [
        (f'{{hook="{hook}",service="{name}",verdict="{verdict}"}} ', number)
        for hook, rows in read.services.items()
        for name, row in zip(names, rows.tolist(), strict=True)
        for verdict, number in zip(read.of_service, row, strict=True)
        if number or verdict == _ALWAYS
    ]
    return ready_counter(
        "towpath_socket_service_calls",
        "Calls for a service by hook and what became of them.",
        (label for label, _ in found),
        (number for _, number in found),
    )


def _of_backends(read: Reading, names: list[str]) -> Metric:
    labels = [
        f'service="{name}"}} '
        for name, place in zip(names, read.places, strict=True)
        for _ in place.handles
    ]
    addresses = [f'{{backend="{address}",' for place in read.places for address, _ in place.handles]
    return ready_counter(
        "towpath_socket_backend_calls",
        "Calls that went to a backend.",
        (
            f'{address}hook="{hook}",{service}'
            for hook in read.backends
            for address, service in zip(addresses, labels, strict=True)
        ),
        (number for numbers in read.backends.values() for number in numbers.tolist()),
    )


def packet_metrics(found: SocketPackets) -> Iterator[Metric]:
    """Metrics of packets that are translated."""
    packets = CounterMetricFamily(
        "towpath_socket_packets",
        "Packets of pods by the program that saw them and what became of them.",
        labels=("program", "verdict"),
    )
    size = CounterMetricFamily(
        "towpath_socket_packet_bytes", "Bytes of translated packets.", labels=("program",)
    )
    for program, verdicts in found.verdicts.items():
        for verdict, number in verdicts.items():
            packets.add_metric((program, verdict), number)
        size.add_metric((program,), found.bytes[program])
    yield packets
    yield size
    yield CounterMetricFamily(
        "towpath_socket_packet_flows_begun", "New flows of packets.", value=found.begun
    )
    yield GaugeMetricFamily(
        "towpath_socket_packet_flows", "Flows of packets in the table.", value=found.flows
    )
