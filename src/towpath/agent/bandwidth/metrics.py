# SPDX-License-Identifier: Apache-2.0
"""Metrics of bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from towpath.documents import Bandwidth

_LABELS = ("aggregate", "kind")


def bandwidth_metrics(found: Bandwidth) -> Iterator[Metric]:
    """Metrics of all aggregates, and of the devices."""
    packets = CounterMetricFamily(
        "towpath_bandwidth_packets",
        "Packets of limited pods by what became of them; a GSO packet is one.",
        labels=(*_LABELS, "verdict"),
    )
    size = CounterMetricFamily(
        "towpath_bandwidth_bytes",
        "Bytes on the wire of limited pods.",
        labels=(*_LABELS, "direction"),
    )
    delay = CounterMetricFamily(
        "towpath_bandwidth_delay_seconds", "Delay of all packets together.", labels=_LABELS
    )
    limit = GaugeMetricFamily(
        "towpath_bandwidth_limit_bits",
        "Bits a second that a pod or group may have.",
        labels=(*_LABELS, "direction"),
    )
    backlog = GaugeMetricFamily(
        "towpath_bandwidth_backlog_seconds",
        "How long what was charged takes to leave, now.",
        labels=_LABELS,
    )
    longest = GaugeMetricFamily(
        "towpath_bandwidth_longest_delay_seconds",
        "The longest delay that a packet was given.",
        labels=_LABELS,
    )
    for each in found.aggregates:
        labels = (each.name, each.kind)
        for verdict, number in each.verdicts.items():
            packets.add_metric((*labels, verdict), number)
        size.add_metric((*labels, "egress"), each.egress_bytes)
        size.add_metric((*labels, "ingress"), each.ingress_bytes)
        delay.add_metric(labels, each.delayed_ms / 1000)
        for direction, rate in (("egress", each.egress), ("ingress", each.ingress)):
            if rate:
                limit.add_metric((*labels, direction), rate)
        backlog.add_metric(labels, each.backlog_ms / 1000)
        longest.add_metric(labels, each.longest_ms / 1000)
    yield from (packets, size, delay, limit, backlog, longest)
    yield from _devices(found)


def _devices(found: Bandwidth) -> Iterator[Metric]:
    paces = GaugeMetricFamily(
        "towpath_bandwidth_device_paces",
        "1: packets leave the device by times of departure (fq); 0: they are policed.",
        labels=("device",),
    )
    dropped = CounterMetricFamily(
        "towpath_bandwidth_fq_dropped", "Packets that fq has dropped by itself.", labels=("device",)
    )
    for each in found.devices:
        paces.add_metric((each.name,), each.paces)
        dropped.add_metric((each.name,), each.dropped)
    yield from (paces, dropped)
