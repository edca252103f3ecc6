# SPDX-License-Identifier: Apache-2.0
"""From a running kube-proxy to Towpath and back, under load."""

from __future__ import annotations

import json
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_load import at, load
from tests.kubernetes.harness_proxies import _agent, knows_all
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

pytestmark = pytest.mark.thorough

WORKS = {"a", "b"}
SLEEPING = ["nftables: table ip kube-proxy (asleep)", "nftables: table ip6 kube-proxy (asleep)"]
AWAKE = ["nftables: table ip kube-proxy", "nftables: table ip6 kube-proxy"]


def cleanup(node: Node, *words: str) -> str:
    """What `towpath cleanup kube-proxy` says on a node."""
    return node.run(sys.executable, "-m", "towpath", "cleanup", "kube-proxy", *words)


def found(node: Node) -> dict[str, Any]:
    """What it lists."""
    listed: dict[str, Any] = json.loads(cleanup(node, "-o", "json"))
    return listed


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Services:
    """A service, which kube-proxy serves."""
    make_pods(cluster)
    made = Services(cluster, "kube-proxy")
    made.make("web", type="NodePort")
    made.seconds = 60
    return made


@pytest.fixture
def proxies(services: Services) -> Iterator[None]:
    """kube-proxy on both nodes, and what it serves is known."""
    for node in services.cluster.nodes:
        node.kube_proxy.start()
    for address in services.addresses("web"):
        services.until(WORKS, "client-one", "tcp", address, 80)
        services.until(WORKS, "node two", "tcp", address, 80)
    yield
    for node in services.cluster.nodes:
        node.kube_proxy.stop()
        for name in ("ip kube-proxy", "ip6 kube-proxy", "inet towpath-kube-proxy"):
            node.run("sh", "-c", f"nft delete table {name} || true")
        node.run("rm", "-rf", "/var/lib/towpath/kube-proxy")


def started(cluster: Cluster) -> list[Program]:
    """Agents on both nodes that leave nothing, once all is in force."""
    agents = [_agent(node, number) for number, node in enumerate(cluster.nodes)]
    for agent in agents:
        agent.start("--detach-on-exit")
    for node, agent in zip(cluster.nodes, agents, strict=True):
        agent.wait_for(partial(knows_all, node))
    return agents


def inside(services: Services) -> dict[str, list[str]]:
    """All ways to the service that begin in a pod or on a node."""
    port = services.plane.get("service", "web")["spec"]["ports"][0]["nodePort"]
    clusters = [at(kind, each, 80) for kind in ("tcp", "udp") for each in services.addresses("web")]
    one = services.cluster.nodes[0]
    ports = [at("tcp", each, port) for each in (one.address, one.address6)]
    return {"client-one": [*clusters, *ports], "client-two": clusters, "node one": clusters}


@pytest.mark.usefixtures("proxies")
def test_nothing_is_lost_from_kube_proxy_to_towpath_and_back(services: Services) -> None:
    """Neither a connection that is there nor a new one, TCP and UDP, in both families."""
    nodes = services.cluster.nodes
    with load(services.cluster, inside(services)) as asked:
        time.sleep(2)  # connections of kube-proxy's
        agents = started(services.cluster)
        for node in nodes:
            assert found(node)["unserved"] == []
            node.kube_proxy.stop(signal.SIGTERM)
            assert "unhooked" in cleanup(node, "--remove")
        for node in nodes:
            listed = found(node)
            assert (listed["removed"], listed["phase"]) == (SLEEPING, "unhooked")
            assert node is not nodes[0] or sum(e["count"] for e in listed["connections"]) >= 16
            cleanup(node, "--confirm")
            assert "table ip kube-proxy" not in node.run("nft", "list", "tables")
        time.sleep(3)  # with nothing of kube-proxy's
        kept = nodes[0].run("nft", "list", "tables")
    assert asked.failed == {}
    assert asked.done > 10_000
    assert "table inet towpath-kube-proxy" in kept  # while those connections were there
    with load(services.cluster, inside(services)) as asked:
        time.sleep(2)  # connections of Towpath's
        for node in nodes:
            node.kube_proxy.start()
        services.eventually(lambda: all("ip6 kube-proxy" in _tables(node) for node in nodes))
        time.sleep(2)  # kube-proxy's first sync
        for agent in agents:
            agent.stop(signal.SIGTERM)
        time.sleep(2)
    assert asked.failed == {}
    assert asked.done > 10_000
    for node in nodes:
        # kube-proxy's own rules are enough: our table goes by itself.
        services.eventually(lambda node=node: "towpath" not in _tables(node))  # type: ignore[misc]


@pytest.mark.usefixtures("proxies")
def test_it_comes_back_by_itself_if_nobody_confirms(services: Services) -> None:
    """Also when whoever began it is gone; services are as they were."""
    node = services.cluster.nodes[0]
    node.kube_proxy.stop(signal.SIGTERM)
    with pytest.raises(KubernetesError, match=r"nobody would serve .*default/web.*everybody"):
        cleanup(node, "--remove")
    address = services.addresses("web")[0]
    cleanup(node, "--remove", "--unserved", "--within", "5")
    assert found(node)["removed"] == SLEEPING
    assert services.names("client-one", "tcp", address, 80, count=1) != {"a"}
    services.until(WORKS, "client-one", "tcp", address, 80)
    assert (found(node)["removed"], found(node)["phase"]) == (AWAKE, None)
    assert "towpath" not in _tables(node)


@pytest.mark.usefixtures("proxies")
def test_a_kube_proxy_that_runs_is_left_alone(services: Services) -> None:
    """It would not notice: it is named. One that starts in between has its rules again."""
    node = services.cluster.nodes[0]
    with pytest.raises(KubernetesError, match="kube-proxy runs"):
        cleanup(node, "--remove", "--unserved")
    assert found(node)["removed"] == AWAKE
    node.kube_proxy.stop(signal.SIGTERM)
    cleanup(node, "--remove", "--unserved")
    node.kube_proxy.start()
    cleanup(node, "--restore")
    for address in services.addresses("web"):
        services.until(WORKS, "client-one", "tcp", address, 80)
    with pytest.raises(KubernetesError, match="nothing was unhooked"):
        cleanup(node, "--confirm")


def _tables(node: Node) -> str:
    return node.run("nft", "list", "tables")
