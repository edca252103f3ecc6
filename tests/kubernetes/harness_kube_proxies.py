# SPDX-License-Identifier: Apache-2.0
"""kube-proxy as what was there before, in whatever mode, and what takes it out."""

from __future__ import annotations

import json
import re
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.kubernetes import harness_iptables
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program


_SYNCED = re.compile(r"^kubeproxy_sync_proxy_rules_last_timestamp_seconds\S* (\S+)$", re.MULTILINE)
_FAMILIES = 2


def has_rules(node: Node) -> bool:
    """Whether a node's kube-proxy has written its rules, of both families."""
    asked = "urlopen('http://127.0.0.1:10249/metrics').read().decode()"
    code = f"from urllib.request import urlopen; print({asked})"
    try:
        said = node.run(sys.executable, "-c", code)
    except KubernetesError:
        return False
    return sum(float(each) > 0 for each in _SYNCED.findall(said)) == _FAMILIES


class KubeProxies:
    """kube-proxy on each node, in one of its modes, and what takes it out."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        self.mode = mode
        self._nodes = cluster.nodes
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
        """All of them; return when each has its rules.

        Who asks a Service earlier spoils it for later: the kernel knows the connection for two
        minutes as one that nothing translates (findings/nat-after-the-first-packet.sh).
        """
        for each in self.programs.values():
            each.start()
        for node in self._nodes:
            self.programs[node.name].wait_for(partial(has_rules, node))

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
