# SPDX-License-Identifier: Apache-2.0
"""What there is to say of masquerade on a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.masquerade.flows import FlowTable
from towpath.datapath.masquerade.tables import read_counts
from towpath.documents import (
    Masquerade,
    MasqueradeCounters,
    MasqueradeDevice,
    MasqueradeRule,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.masquerade.node import Node

_TRANSLATED = ("sent", "neighbour", "peer", "stack")
_OUT, _IN = ("from_pod", "to_net"), ("from_net", "from_pod")


def report(node: Node) -> Masquerade:
    """All of it but the flows. KernelError."""
    section = node.section
    return Masquerade(
        rules=tuple(
            MasqueradeRule(rule.devices, rule.prefixes, rule.exclude or ())
            for rule in section.rules
        ),
        ports=str(section.ports),
        mapping=section.mapping,
        through_stack=section.through_stack,
        devices=tuple(_devices(node)),
        sources=tuple(sorted(node.sources.by_address, key=lambda each: (each.version, int(each)))),
        ports_in_use=tuple(sorted(set().union(*node.taken.values()))),
        flows=FlowTable(node).count(),
        capacity=node.capacity,
        counters=counters(node),
        troubles=node.troubles,
    )


def _devices(node: Node) -> Iterator[MasqueradeDevice]:
    for role in sorted(node.roles.values(), key=lambda each: each.device.index):
        yield MasqueradeDevice(
            name=role.device.name,
            role="pods" if role.rules else "out",
            rules=role.rules,
            direct=node.is_direct(role),
            ethernet=role.device.ethernet,
        )


def counters(node: Node) -> MasqueradeCounters:
    """What was counted since the tables were made."""
    found = read_counts(node.program)
    bytes_ = {name: each.pop("bytes") for name, each in found.items()}
    bound = sum(each.pop("bound") for each in found.values())
    return MasqueradeCounters(
        verdicts=found,
        bound=bound,
        bytes=bytes_,
    )
