# SPDX-License-Identifier: Apache-2.0
"""What there is to say of bandwidth on a node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from towpath.datapath.bandwidth.survival import survival
from towpath.datapath.bandwidth.wanted import fields
from towpath.documents import Bandwidth, BandwidthAggregate, BandwidthDevice
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.bandwidth.node import Node
    from towpath.datapath.bandwidth.wanted import Aggregate


def report(node: Node) -> Bandwidth:
    """All of it. KernelError."""
    return Bandwidth(
        direct=node.section.direct,
        charges="atomic" if node.program.atomic else "locked",
        stamps_kept=_stamps_kept(),
        devices=tuple(_devices(node)),
        aggregates=tuple(_aggregates(node)),
        room=node.program.aggregates,
        unlimited=_counts(node, 0),
        troubles=node.troubles,
    )


def _stamps_kept() -> tuple[str, ...] | None:
    try:
        kept = survival()
    except KernelError:
        return None
    return tuple(name for name, each in kept._asdict().items() if each)


def _devices(node: Node) -> Iterator[BandwidthDevice]:
    for index, device in sorted(node.devices.items()):
        why = node.unpaced.get(index, "")
        try:
            dropped = node.fq.drops(index)
        except KernelError:
            continue  # it has just gone
        yield BandwidthDevice(
            name=device.name, paces=not why, why=why, dropped=0 if why else dropped
        )


def _aggregates(node: Node) -> Iterator[BandwidthAggregate]:
    now = time.monotonic_ns()
    _, states = node.program.maps["bw_states"].snapshot()
    _, counts = node.program.maps["bw_counts"].snapshot()
    names = node.program.verdicts()
    numbers = node.numbers.by_name
    flows = (1 << node.program.constant("bandwidth_limits", "BANDWIDTH_SETS_SHIFT")) - 1
    for each in node.aggregates:
        at = numbers[each.name]
        # What a group has is what its pods have.
        rows = [numbers[pod.name] for pod in node.aggregates if pod.group == each.name]
        mine = counts[rows if each.is_group else [at]]
        yield BandwidthAggregate(
            name=each.name,
            kind="group" if each.is_group else "pod",
            origin=each.origin,
            group=each.group or None,
            devices=tuple(_names(node, each)),
            **fields(each.limit),
            egress_bytes=int(mine["egress_bytes"].sum()),
            ingress_bytes=int(mine["ingress_bytes"].sum()),
            verdicts={name: int(mine["packets"][..., i].sum()) for i, name in enumerate(names)},
            stamps_converted=int(mine["converted"].sum()),
            stamps_cleared=int(mine["cleared"].sum()),
            backlog_ms=max(0, int(states[at]["next"]) - now) / 1e6,
            delayed_ms=int(mine["delay"].sum()) / 1e6,
            longest_ms=int(mine["longest"].max(initial=0)) / 1e6,
            flows=int(states[at]["active"]) & flows,
        )


def _names(node: Node, each: Aggregate) -> Iterator[str]:
    for index in node.located.devices_of(each.name):
        try:
            yield device_name(index)
        except KernelError:
            continue  # it has just gone


def _counts(node: Node, number: int) -> dict[str, int]:
    counts = node.program.maps["bw_counts"].lookup(number)
    packets = counts["packets"].sum(axis=0)
    found = {name: int(packets[i]) for i, name in enumerate(node.program.verdicts())}
    found["stamps_converted"] = int(counts["converted"].sum())
    found["stamps_cleared"] = int(counts["cleared"].sum())
    return found
