# SPDX-License-Identifier: Apache-2.0
"""What Nodes say is handed on: next hops that are kept, pods that are masqueraded."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_pods import Receiver, limiting, neighbours, rules, sender, until
from tools.kubernetes import control_plane

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster

pytestmark = pytest.mark.thorough


def test_nodes_are_neighbours_and_pods_are_masqueraded(cluster: Cluster) -> None:
    """What leaves the cluster has the node's address; pods of all nodes are spared."""
    one, two = cluster.nodes
    wishes = {
        "node_neighbours": True,
        "masquerade_devices": ["cni0"],
        "non_masquerade_cidrs": ["203.0.113.0/24"],
    }
    limits = {"services": 64, "backends": 256, "flows": 1024, "table_slots": 100_000}
    devices = [{"name": "eth0", "mode": "generic"}]
    given = {"devices": devices, "limits": limits, "masquerade": {"rules": []}, "services": []}
    receiver = Receiver()
    try:
        with limiting(one, wishes, **given):
            until(lambda: neighbours(one).get(two.address), "the other Node to be a next hop")
            assert set(neighbours(one)) >= {two.address, two.address6}
            (rule,) = until(lambda: rules(one), "a rule")
            assert rule["devices"] == ["cni0"]
            assert set(rule["prefixes"]) == set(one.pod_ranges)
            spared = [*one.pod_ranges, *two.pod_ranges, "203.0.113.0/24"]
            assert all(_has(rule["exclude"], each) for each in spared), rule
            assert not _has(rule["exclude"], control_plane.ADDRESS)
            cluster.plane.apply(sender("out", one.name, {}, seconds=30))
            until(lambda: _sources(receiver) == {one.address}, "the node's address outside")
            cluster.plane.kubectl("delete", "pod", "out", "--now")
    finally:
        receiver.close()


def _has(prefixes: list[str], text: str) -> bool:
    """Whether one of some prefixes covers another."""
    wanted: Any = ip_network(text)
    found = map(ip_network, prefixes)
    return any(each.version == wanted.version and wanted.subnet_of(each) for each in found)


def _sources(receiver: Receiver) -> set[str]:
    """Whose packets arrive."""
    receiver.arrivals.clear()
    receiver.listen(1)
    return set(receiver.by_source())
