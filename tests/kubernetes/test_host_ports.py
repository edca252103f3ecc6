# SPDX-License-Identifier: Apache-2.0
"""The portmap plugin's host ports live on beside Services in XDP, at tc, at sockets.

A port of the node's is a Service's wherever one has its number: at a node port, or at an address of
a load balancer that is the node's own.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes import harness_iptables
from tests.kubernetes.harness_proxies import proxies
from tests.kubernetes.harness_services import PORTS, Services, make_pods, port
from tools.kubernetes import kept
from tools.kubernetes.cluster import server_pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node

pytestmark = pytest.mark.thorough

ALL = {"a", "b"}
BACKENDS = ("nftables", "iptables-nft", "iptables-legacy")
HOST_PORT = 30990
"""In the range of node ports, so that one may have it."""
OWN = {"host"}
_FAMILIES = ("ip", "ip6")


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Iterator[Services]:
    """Agents that serve everywhere, on nodes whose plugin is the newest that Debian has."""
    plugin = "usr/lib/cni/portmap"
    for node in cluster.nodes:
        node.run("mount", "--bind", kept.NEWER.path / plugin, kept.RUNTIME.path / plugin)
    make_pods(cluster)
    packets = {"packets": {"devices": ["veth*"]}}
    with proxies(cluster, "towpath", {"socket": packets}):
        yield Services(cluster, "towpath")


@pytest.fixture(autouse=True)
def _no_service_stays(services: Services) -> Iterator[None]:
    yield
    services.plane.kubectl("delete", "service", "-l", "component!=apiserver", "--wait=false")


def map_ports(node: Node, backend: str) -> None:
    """Have new pods of a node get their host ports by a backend of the plugin."""
    kind, _, iptables = backend.partition("-")
    if iptables:
        directory = harness_iptables.programs(node, iptables)
        node.run("sh", "-c", f"cp {directory}/* /usr/sbin/")
    path = node.directory / "networks/10-pods.conflist"
    whole = json.loads(path.read_text())
    others = [each for each in whole["plugins"] if each["type"] != "portmap"]
    own = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": kind, "snat": True}
    new = path.with_name(".new")
    new.write_text(json.dumps(whole | {"plugins": [*others, own]}))
    new.rename(path)


@contextmanager
def host_port(services: Services, backend: str) -> Iterator[None]:
    """A pod ``host`` on node one, at its port by TCP and UDP."""
    map_ports(services.cluster.node("one"), backend)
    made: dict[str, Any] = server_pod("host", "one", PORTS)
    for each in made["spec"]["containers"][0]["ports"]:
        if each["containerPort"] == PORTS["web"]:
            each["hostPort"] = HOST_PORT
    services.cluster.make(made)
    try:
        yield
    finally:
        services.plane.kubectl("delete", "pod", "host", "--now")


def reached(services: Services, who: set[str], number: int = HOST_PORT) -> None:
    """Who has the port, whoever asks: outside, the node itself, another one, pods of both."""
    one = services.cluster.node("one")
    for address in (one.address, one.address6):
        for client in ("outside", "node one", "node two", "client-one", "client-two"):
            for kind in ("tcp", "udp"):
                services.until(who, client, kind, address, number, count=8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_host_ports_live_on(services: Services, backend: str) -> None:
    """Beside Services; a node port of that number is the Service's, for as long as it is there."""
    one = services.cluster.node("one")
    services.make("web", type="NodePort")
    with host_port(services, backend):
        assert f"{HOST_PORT}" in _rules(one, backend), "the backend is the one that is meant"
        reached(services, OWN)
        services.until(ALL, "client-one", "tcp", services.addresses("web")[0], 80)
        same = [port(80, 8080, kind, nodePort=HOST_PORT) for kind in ("TCP", "UDP")]
        services.make("same", type="NodePort", ports=same)
        reached(services, ALL)
        services.plane.kubectl("delete", "service", "same")
        reached(services, OWN)


def test_an_address_of_a_load_balancer_that_is_the_nodes(services: Services) -> None:
    """The same: the Service has what is for its address and port, and nothing else there."""
    one = services.cluster.node("one")
    with host_port(services, "nftables"):
        reached(services, OWN)
        same = [port(HOST_PORT, 8080, kind) for kind in ("TCP", "UDP")]
        services.make("edge", type="LoadBalancer", ports=same, allocateLoadBalancerNodePorts=False)
        services.give("edge", {"ip": one.address}, {"ip": one.address6})
        reached(services, ALL)
        services.give("edge")
        reached(services, OWN)


def _rules(node: Node, backend: str) -> str:
    """What a backend has written."""
    if backend == "nftables":
        return "".join(node.run("nft", "list", "table", each, "cni_hostport") for each in _FAMILIES)
    return node.run("iptables-save", "-t", "nat")
