# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods of these tests are real, and reach each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.kubernetes.cluster import asked, server_pod

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster


def test_pods_reach_each_other_across_nodes(cluster: Cluster) -> None:
    """In both families, by TCP and UDP, with their own addresses."""
    pods = [server_pod(f"on-{node.name}", node.name, {"web": 8080}) for node in cluster.nodes]
    cluster.make(*pods)
    first, second = (each["metadata"]["name"] for each in pods)
    own = [each["ip"] for each in cluster.pod(first)["status"]["podIPs"]]
    for number, each in enumerate(cluster.pod(second)["status"]["podIPs"]):
        for kind in ("tcp", "udp"):
            said = cluster.run_in_pod(
                first, "python3", "/pod.py", "ask", kind, each["ip"], "8080", "1"
            )
            (got,) = asked(said)
            assert (got.get("name"), got.get("source")) == (second, own[number]), got
    cluster.plane.kubectl("delete", "pod", first, second, "--now")
