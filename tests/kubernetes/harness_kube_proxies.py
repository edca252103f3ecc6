# SPDX-License-Identifier: Apache-2.0
"""kube-proxy as what was there before, in whatever mode, and what takes it out."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from tests.kubernetes import harness_iptables

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program


class KubeProxies:
    """kube-proxy on each node, in one of its modes, and what takes it out."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        self.mode = mode
        self.programs: dict[str, Program] = {}
        self.path: dict[str, list[str]] = {}
        for node in cluster.nodes:
            backend = mode.removeprefix("iptables-")
            if backend == mode:
                self.programs[node.name], self.path[node.name] = node.kube_proxy, []
            else:
                self.programs[node.name] = harness_iptables.kube_proxy(node, backend)
                directory = harness_iptables.programs(node, backend)
                self.path[node.name] = harness_iptables.with_path(directory)

    def start(self) -> None:
        """All of them."""
        for each in self.programs.values():
            each.start()

    def end(self, node: Node) -> None:
        """One, as a rolling update would."""
        self.programs[node.name].stop(signal.SIGTERM)

    def cleanup(self, node: Node, *words: str) -> str:
        """What `towpath cleanup kube-proxy` says on a node."""
        command = (sys.executable, "-m", "towpath", "cleanup", "kube-proxy")
        return node.run(*self.path[node.name], *command, *words)

    def found(self, node: Node) -> dict[str, Any]:
        """What it lists."""
        listed: dict[str, Any] = json.loads(self.cleanup(node, "-o", "json"))
        return listed

    def jumps(self, node: Node) -> list[str]:
        """Rules by which packets come to it."""
        return [each for each in self.found(node)["removed"] if " -j KUBE-" in each]
