# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agent itself, and of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from towpath.api.documents import DeviceStatus, Refused, Status, UnwrappedCounters


def host_metrics(devices: Iterable[DeviceStatus], followed: Mapping[str, int]) -> Iterator[Metric]:
    """Metrics of devices, and of what was put right that others had done."""
    attached = GaugeMetricFamily(
        "towpath_device_attached",
        "1 for a device whose packets are balanced, 0 for one that is missing or refuses.",
        labels=("device",),
    )
    native = GaugeMetricFamily(
        "towpath_device_native",
        "1 for a device on which the program runs in the driver, 0: in the kernel's stack.",
        labels=("device",),
    )
    for device in devices:
        attached.add_metric((device.name,), int(device.index is not None))
        if device.mode:
            native.add_metric((device.name,), int(device.mode == "native"))
    yield attached
    yield native
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


def refused_metrics(refused: Iterable[Refused]) -> Iterator[Metric]:
    """Metrics of packets that didn't leave though they were sent."""
    family = CounterMetricFamily(
        "towpath_refused_packets",
        "Packets that were sent and then refused, by the device that they were for.",
        labels=("device", "error"),
    )
    for each in refused:
        family.add_metric((each.device, each.error), each.packets)
    yield family


def unwrapped_metrics(unwrapped: Iterable[UnwrappedCounters]) -> Iterator[Metric]:
    """Metrics of packets that were taken out of tunnels, where there are addresses for that."""
    packets = CounterMetricFamily(
        "towpath_unwrapped_packets",
        "Packets for services that were taken out of tunnels, by the tunnels' destination.",
        labels=("address",),
    )
    size = CounterMetricFamily(
        "towpath_unwrapped_bytes", "Their bytes, without outer headers.", labels=("address",)
    )
    for each in unwrapped:
        packets.add_metric((str(each.address),), each.packets)
        size.add_metric((str(each.address),), each.bytes)
    if packets.samples:
        yield packets
        yield size


def local_metrics(local: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    """Metrics of what is translated for backends on this node, where there are any."""
    if not local:
        return
    packets = CounterMetricFamily(
        "towpath_local_packets",
        "Translated packets of backends on this node, by program and what became of them.",
        labels=("program", "verdict"),
    )
    size = CounterMetricFamily("towpath_local_bytes", "Their bytes.", labels=("program",))
    for program, counts in local.items():
        for verdict, number in counts.items():
            if verdict not in {"bytes", "begun"}:
                packets.add_metric((program, verdict), number)
        size.add_metric((program,), counts["bytes"])
    yield packets
    yield size


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
