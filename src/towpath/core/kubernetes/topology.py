# SPDX-License-Identifier: Apache-2.0
"""Which endpoints get connections: ready ones, near ones, or those that still serve.

As kube-proxy has it (KEP-1669, KEP-4444), so that nodes with either agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from towpath.core.kubernetes.slices import Found


def for_all(
    endpoints: Collection[Found], node: str | None, zone: str | None
) -> tuple[list[Found], list[Found]]:
    """Return who gets new connections with policy Cluster, and who only keeps what it has."""
    ready = [each for each in endpoints if each.said.ready]
    serving = [each for each in endpoints if not each.said.ready]
    if not ready:
        return serving, []
    return _near(ready, node, zone), serving


def for_local(endpoints: Collection[Found], node: str | None) -> tuple[list[Found], list[Found]]:
    """The same with policy Local: endpoints of this node only."""
    local = [each for each in endpoints if node is not None and each.said.node == node]
    return for_all(local, None, None)


def _near(ready: list[Found], node: str | None, zone: str | None) -> list[Found]:
    """By hints, if every ready endpoint has one and one of them is for here; nodes first."""
    if node and all(each.said.nodes for each in ready):
        mine = [each for each in ready if each.said.nodes and node in each.said.nodes]
        if mine:
            return mine
    if zone and all(each.said.zones for each in ready):
        mine = [each for each in ready if each.said.zones and zone in each.said.zones]
        if mine:
            return mine
    return ready
