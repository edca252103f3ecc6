# SPDX-License-Identifier: Apache-2.0
"""Who serves Services on the nodes: kube-proxy, or Towpath."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_kube_proxies import has_rules
from tools.kubernetes import binaries
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.node import ip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

PROXIES = (pytest.param("kube-proxy", marks=pytest.mark.thorough), pytest.param("towpath"))
"""In the order of the table. kube-proxy shows that the tests are fair: not in CI."""


@contextmanager
def proxies(
    cluster: Cluster, name: str, others: Mapping[str, Any] | None = None, **section: Any
) -> Iterator[list[Program]]:
    """One of them on each node; it leaves nothing there.

    ``section``: more of what Towpath's agents are told of Kubernetes; ``others``: other sections.
    """
    made = _agents(cluster, section, others) if name == "towpath" else _kube_proxies(cluster)
    with made as running:
        yield running


@contextmanager
def _kube_proxies(cluster: Cluster) -> Iterator[list[Program]]:
    for node in cluster.nodes:
        node.kube_proxy.start()
    try:
        for node in cluster.nodes:
            node.kube_proxy.wait_for(partial(has_rules, node))
        yield [node.kube_proxy for node in cluster.nodes]
    finally:
        for node in cluster.nodes:
            node.kube_proxy.stop(signal.SIGTERM)
            node.run(binaries.program("kube-proxy"), "--cleanup")


@contextmanager
def _agents(
    cluster: Cluster, section: dict[str, Any], others: Mapping[str, Any] | None
) -> Iterator[list[Program]]:
    """What is pinned goes with the node."""
    agents = [_agent(node, number, section, others) for number, node in enumerate(cluster.nodes)]
    try:
        for agent in agents:
            agent.start()
        for node, agent in zip(cluster.nodes, agents, strict=True):
            agent.wait_for(partial(knows_all, node))
        yield agents
    finally:
        for agent in agents:
            agent.stop(signal.SIGTERM)


def _agent(
    node: Node,
    number: int,
    section: dict[str, Any] | None = None,
    others: Mapping[str, Any] | None = None,
) -> Program:
    """An agent as docs/kubernetes.md has it, from this checkout."""
    translated = {"ipv4": f"192.168.88.{110 + number}", "ipv6": f"fd88::{110 + number}"}
    for address in (f"{translated['ipv4']}/24", f"{translated['ipv6']}/64"):
        # Deprecated: the node itself, and whoever masquerades for it, chooses another one.
        other = ("nodad", "preferred_lft", "0") if ":" in address else ()
        ip("-n", node.netns, "addr", "replace", address, "dev", "eth0", *other)
    configuration = {
        "devices": [{"name": "eth0", "mode": "generic"}],
        "snat": {key: [value] for key, value in translated.items()},
        "socket": {},
        "kubernetes": {
            "kubeconfig": str(node.plane.node_kubeconfig),
            "node": node.name,
            "external_ips": ["198.51.100.0/24", "2001:db8:30::/64"],
        }
        | (section or {}),
        "limits": {
            "services": 1024,
            "backends": 4096,
            "flows": 4096,
            "clients": 1024,
            "sources": 500,
            "table_slots": 1_000_000,
        },
        "services": [],
    } | dict(others or {})
    path = node.directory / "towpath.yaml"
    path.write_text(json.dumps(configuration))
    return node.program("towpath", sys.executable, "-m", "towpath", "agent", "--config", path)


def knows_all(node: Node) -> bool:
    """Whether the agent says that what it knows is in force."""
    code = "from towpath.api.client import Client\nwith Client() as client: client.health()"
    try:
        node.run(sys.executable, "-c", code)
    except KubernetesError:
        return False
    return True
