# SPDX-License-Identifier: Apache-2.0
"""From a running kube-proxy to Towpath and back, under load."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_kube_proxies import KubeProxies
from tests.kubernetes.harness_load import at, at_this_time, load
from tests.kubernetes.harness_proxies import _agent, knows_all
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import binaries
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


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Services:
    """A service, which kube-proxy serves."""
    make_pods(cluster)
    made = Services(cluster, "kube-proxy")
    made.make("web", type="NodePort")
    made.seconds = 60
    return made


@pytest.fixture
def proxies(services: Services, request: pytest.FixtureRequest) -> Iterator[KubeProxies]:
    """kube-proxy on both nodes, and what it serves is known."""
    made = KubeProxies(services.cluster, getattr(request, "param", "nftables"))
    made.start()
    for address in services.addresses("web"):
        services.until(WORKS, "client-one", "tcp", address, 80)
        services.until(WORKS, "node two", "tcp", address, 80)
    yield made
    for node in services.cluster.nodes:
        made.end(node)
        node.run("nft", "flush", "ruleset")
        node.run("rm", "-rf", "/var/lib/towpath/kube-proxy")
        if made.path[node.name]:
            node.run(*made.path[node.name], binaries.program("kube-proxy"), "--cleanup")


def started(cluster: Cluster) -> list[Program]:
    """Agents on both nodes that leave nothing, once all is in force."""
    agents = [_agent(node, number) for number, node in enumerate(cluster.nodes)]
    for agent in agents:
        agent.start("--detach-on-exit")
    for node, agent in zip(cluster.nodes, agents, strict=True):
        agent.wait_for(partial(knows_all, node))
    return agents


def ways(services: Services) -> dict[str, list[str]]:
    """All ways to the service: from pods, nodes, and clients outside."""
    port = services.plane.get("service", "web")["spec"]["ports"][0]["nodePort"]
    clusters = [at(kind, each, 80) for kind in ("tcp", "udp") for each in services.addresses("web")]
    one = services.cluster.nodes[0]
    ports = [at("tcp", each, port) for each in (one.address, one.address6)]
    outside = [
        at(kind, each, port)
        for kind in ("tcp", "udp")
        for node in services.cluster.nodes
        for each in (node.address, node.address6)
    ]
    return {
        "client-one": [*clusters, *ports],
        "client-two": clusters,
        "node one": clusters,
        "outside": outside,
    }


MODES = ("nftables", "iptables-nft", "iptables-legacy")


@pytest.mark.parametrize(
    ("proxies", "times"), [*zip(MODES, (2, 1, 1), strict=True)], indirect=["proxies"]
)
def test_nothing_is_lost_from_kube_proxy_to_towpath_and_back(
    services: Services, proxies: KubeProxies, times: int
) -> None:
    """Neither a connection that is there nor a new one, TCP and UDP, in both families.

    Nor when it is done again at once: the kernel has flows then that were handed back to it.
    """
    for _ in range(times):
        agents = there(services, proxies)
        back(services, proxies, agents)
        for node in services.cluster.nodes:
            # kube-proxy's own rules are enough: our table goes by itself.
            services.eventually(lambda node=node: "towpath" not in _tables(node))  # type: ignore[misc]


def there(services: Services, proxies: KubeProxies) -> list[Program]:
    """Have agents take over from kube-proxy."""
    nodes = services.cluster.nodes
    with load(services.cluster, ways(services)) as asked:
        time.sleep(2)  # connections of kube-proxy's
        at_this_time("agents start")
        agents = started(services.cluster)
        at_this_time("agents know all")
        for node in nodes:
            assert proxies.found(node)["unserved"] == []
            proxies.end(node)
            assert "unhooked" in proxies.cleanup(node, "--remove")
            at_this_time(f"{node.name} unhooked")
        for node in nodes:
            listed = proxies.found(node)
            assert (proxies.jumps(node), listed["phase"]) == ([], "unhooked")
            assert listed["removed"] == SLEEPING or proxies.mode != "nftables"
            assert node is not nodes[0] or sum(e["count"] for e in listed["connections"]) >= 16
            proxies.cleanup(node, "--confirm")
            at_this_time(f"{node.name} confirmed")
            assert proxies.found(node)["removed"] == []
        time.sleep(3)  # with nothing of kube-proxy's
        kept = nodes[0].run("nft", "list", "tables")
    assert asked.failed == {}
    assert asked.done > 10_000
    assert "table inet towpath-kube-proxy" in kept  # while those connections were there
    return agents


def back(services: Services, proxies: KubeProxies, agents: list[Program]) -> None:
    """And kube-proxy from these."""
    with load(services.cluster, ways(services)) as asked:
        time.sleep(2)  # connections of Towpath's
        at_this_time("kube-proxy starts")
        proxies.start()
        services.eventually(
            lambda: all(proxies.found(node)["removed"] for node in services.cluster.nodes)
        )
        at_this_time("agents end")
        for agent in agents:
            agent.stop(signal.SIGTERM)
        at_this_time("agents have ended")
        time.sleep(2)
    assert asked.failed == {}
    assert asked.done > 10_000


@pytest.mark.parametrize("proxies", MODES[:2], indirect=True)
def test_it_comes_back_by_itself_if_nobody_confirms(
    services: Services, proxies: KubeProxies
) -> None:
    """Also when whoever began it is gone; rules are as they were, each in its place."""
    node = services.cluster.nodes[0]
    proxies.end(node)
    before = node.run("nft", "-s", "list", "ruleset")
    with pytest.raises(KubernetesError, match=r"nobody would serve .*everybody"):
        proxies.cleanup(node, "--remove")
    address = services.addresses("web")[0]
    proxies.cleanup(node, "--remove", "--unserved", "--within", "5")
    assert services.names("client-one", "tcp", address, 80, count=1) & WORKS == set()
    services.until(WORKS, "client-one", "tcp", address, 80)
    assert proxies.found(node)["phase"] is None
    assert node.run("nft", "-s", "list", "ruleset") == before


def test_a_kube_proxy_that_runs_is_left_alone(services: Services, proxies: KubeProxies) -> None:
    """It would not notice: it is named. One that starts in between has its rules again."""
    node = services.cluster.nodes[0]
    with pytest.raises(KubernetesError, match="kube-proxy runs"):
        proxies.cleanup(node, "--remove", "--unserved")
    assert proxies.found(node)["removed"] == AWAKE
    proxies.end(node)
    proxies.cleanup(node, "--remove", "--unserved")
    proxies.programs[node.name].start()
    proxies.cleanup(node, "--restore")
    for address in services.addresses("web"):
        services.until(WORKS, "client-one", "tcp", address, 80)
    with pytest.raises(KubernetesError, match="nothing was unhooked"):
        proxies.cleanup(node, "--confirm")


def _tables(node: Node) -> str:
    return node.run("nft", "list", "tables")
