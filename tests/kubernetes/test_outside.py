# SPDX-License-Identifier: Apache-2.0
"""What comes from outside, beside what nodes have besides Towpath: netfilter, hostPort, processes.

And while agents and pods come and go.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.kubernetes.harness_proxies import knows_all, proxies
from tests.kubernetes.harness_services import OUTSIDE, PORTS, Services, make_pods
from tools.kubernetes.cluster import server_pod
from tools.kubernetes.control_plane import ADDRESS
from tools.kubernetes.node import ip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

pytestmark = pytest.mark.thorough
ALL = {"a", "b"}


class Served(NamedTuple):
    """A cluster with an agent on each node."""

    services: Services
    agents: list[Program]


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Served]:
    """Pods ``a`` and ``b``, and agents."""
    make_pods(cluster)
    with proxies(cluster, "towpath", pools="kube-system/towpath-pools") as agents:
        yield Served(Services(cluster, "towpath"), agents)


def node_ports(made: dict[str, Any]) -> dict[str, int]:
    """By protocol."""
    return {each["protocol"].lower(): each["nodePort"] for each in made["spec"]["ports"]}


@contextmanager
def connected(address: str, port: int) -> Iterator[socket.socket]:
    """A connection from outside."""
    with socket.create_connection((address, port), timeout=10) as made:
        yield made


def answer(talk: socket.socket) -> str:
    """Who answers on a connection."""
    talk.sendall(b"?\n")
    return talk.recv(2048).decode().split()[0]


# As network plugins, Docker and firewalls have it: nothing is let through but connections of pods
# and with pods, and what pods send to elsewhere is masqueraded.
_RULES = """
table inet beside {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid counter drop
    ct state established,related accept
    ip daddr {pods} accept
    ip6 daddr {pods6} accept
    iifname "cni0" accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {pods} ip daddr != 10.244.0.0/16 masquerade
    ip6 saddr {pods6} ip6 daddr != fd44::/56 masquerade
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    fib daddr type local tcp dport 9090 dnat ip to {pod}:8080
    fib daddr type local udp dport 9090 dnat ip to {pod}:8080
  }}
}}
"""


@contextmanager
def beside(node: Node, pod: str) -> Iterator[None]:
    """Such rules on a node, and a hostPort for a pod, as the portmap plugin has it."""
    pods, pods6 = node.pod_ranges
    node.run("nft", "-f", "-", given=_RULES.format(pods=pods, pods6=pods6, pod=pod))
    try:
        yield
    finally:
        node.run("nft", "delete", "table", "inet", "beside")


@pytest.fixture
def rules(served: Served) -> Iterator[None]:
    """They are on both nodes."""
    services = served.services
    with ExitStack() as undo:
        for node, name in zip(services.cluster.nodes, ("a", "b"), strict=True):
            undo.enter_context(beside(node, services.pod_addresses(name)[0]))
        yield


def test_beside_netfilter(served: Served, rules: None) -> None:
    """It sees a connection of the client with the pod: tracked, let through, not masqueraded."""
    del rules
    services, nodes = served.services, served.services.cluster.nodes
    ports = node_ports(services.make("web", type="NodePort"))
    for node, name in zip(nodes, ("a", "b"), strict=True):
        for address, own in zip((node.address, node.address6), OUTSIDE, strict=True):
            for kind, number in ports.items():
                services.until(ALL, "outside", kind, address, number)
                got = services.ask("outside", kind, address, number, count=12)
                assert {each["source"] for each in got if each["name"] == name} == {own}
    # What pods begin is masqueraded, so the rules are at work.
    with socket.create_server((ADDRESS, 0)) as server:
        code = f"import socket; socket.create_connection({server.getsockname()[:2]})"
        services.cluster.run_in_pod("client-one", "python3", "-c", code)
        accepted, (source, _) = server.accept()
        accepted.close()
        assert source == nodes[0].address


def test_fragments_beside_netfilter(served: Served, rules: None) -> None:
    """Datagrams in pieces, which connection tracking puts together, reach each endpoint."""
    del rules
    services = served.services
    number = node_ports(services.make("web", type="NodePort"))["udp"]
    (one, _) = services.cluster.nodes
    for address in (one.address, one.address6):
        services.until(ALL, "outside", "udp", address, number)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        seen = set()
        for _ in range(24):
            with socket.socket(family, socket.SOCK_DGRAM) as asked:
                asked.settimeout(5)
                asked.connect((address, number))
                asked.send(b"?" * 5000)
                seen.add(asked.recv(2048).decode().split()[0])
        assert seen == ALL


def test_host_ports_live_on(served: Served, rules: None) -> None:
    """A port of the node that no Service has is its rules', beside node ports."""
    del rules
    services = served.services
    number = node_ports(services.make("web", type="NodePort"))["tcp"]
    for node, name in zip(services.cluster.nodes, ("a", "b"), strict=True):
        services.until(ALL, "outside", "tcp", node.address, number)
        for kind in ("tcp", "udp"):
            services.until({name}, "outside", kind, node.address, 9090, count=4)


def test_an_agent_that_is_killed(served: Served) -> None:
    """Connections to endpoints here and elsewhere go on, and new ones begin without it."""
    services, agent = served.services, served.agents[0]
    one = services.cluster.nodes[0]
    cluster = node_ports(services.make("web", type="NodePort"))["tcp"]
    local = services.make("mine", type="NodePort", externalTrafficPolicy="Local")
    services.until(ALL, "outside", "tcp", one.address, cluster)
    services.until({"a"}, "outside", "tcp", one.address, node_ports(local)["tcp"])
    with ExitStack() as undo:

        def talks(count: int = 12) -> list[tuple[socket.socket, str]]:
            """Connections, and who is at their other end."""
            ends = ((one.address, cluster), (one.address6, node_ports(local)["tcp"]))
            made = [undo.enter_context(connected(*end)) for end in ends for _ in range(count)]
            return [(talk, answer(talk)) for talk in made]

        known = talks()
        assert {name for _, name in known} == ALL
        agent.stop(signal.SIGKILL)
        known += talks()
        agent.start()
        agent.wait_for(partial(knows_all, one))
        known += talks()
        for talk, name in known:
            assert answer(talk) == name


def test_an_endpoint_that_ends(served: Served) -> None:
    """Its connections from outside go on while it serves; new ones go elsewhere."""
    services = served.services
    one = services.cluster.nodes[0]
    labels = {"app": "ends"}
    services.cluster.make(
        server_pod("ends", "one", PORTS, labels=labels, linger=15),
        server_pod("stays", "two", PORTS, labels=labels),
    )
    number = node_ports(services.make("ends", selector=labels, type="NodePort"))["tcp"]
    services.until({"ends", "stays"}, "outside", "tcp", one.address, number)
    with ExitStack() as undo:
        made = [undo.enter_context(connected(one.address, number)) for _ in range(12)]
        known = [(talk, answer(talk)) for talk in made]
        assert {name for _, name in known} == {"ends", "stays"}
        services.plane.kubectl("delete", "pod", "ends", "--wait=false")
        services.until({"stays"}, "outside", "tcp", one.address, number)
        for talk, name in known:
            assert answer(talk) == name
    services.plane.kubectl("delete", "pod", "ends", "stays", "--now")


def test_an_address_of_a_pool(served: Served) -> None:
    """Whoever reaches the node by it is answered; the node doesn't have it."""
    services = served.services
    one, two = services.cluster.nodes
    text = "pools: [{name: public, addresses: [198.51.100.40/30, 2001:db8:40::/126]}]"
    meta = {"name": "towpath-pools", "namespace": "kube-system"}
    pools = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {"pools.yaml": text},
    }
    services.plane.apply(pools)
    spec: dict[str, Any] = {"loadBalancerClass": "towpath.alt/load-balancer"}
    services.make("web", type="LoadBalancer", allocateLoadBalancerNodePorts=False, **spec)

    def given() -> list[str]:
        status = services.plane.get("service", "web")["status"]["loadBalancer"]
        return [each["ip"] for each in status.get("ingress", ())]

    services.eventually(lambda: len(given()) == 2)
    for address in given():
        six = ":" in address
        for node in (one, two):
            via = node.address6 if six else node.address
            ip("route", "replace", address, "via", via)
            try:
                for kind in ("tcp", "udp"):
                    services.until(ALL, "outside", kind, address, 80)
            finally:
                ip("route", "del", address)
        services.until(ALL, "client-one", "tcp", address, 80)
    services.plane.kubectl("-n", "kube-system", "delete", "configmap", "towpath-pools")


def test_health_while_endpoints_change(served: Served) -> None:
    """A healthCheckNodePort says each change once, as it is; another node's says its own."""
    services, agent = served.services, served.agents[1]
    one, two = services.cluster.nodes
    made = services.make(
        "web", selector={"only": "b"}, type="LoadBalancer", externalTrafficPolicy="Local"
    )
    number = made["spec"]["healthCheckNodePort"]
    services.eventually(lambda: _health(two, number) == (200, 1))
    services.eventually(lambda: _health(one, number) == (503, 0))
    seen: dict[str, list[tuple[int, int]]] = {one.name: [], two.name: []}
    ended = threading.Event()

    def follow(node: Node) -> None:
        while not ended.wait(0.02):
            found = _health(node, number)
            if found[0] and [found] != seen[node.name][-1:]:
                seen[node.name].append(found)

    threads = [threading.Thread(target=follow, args=(each,)) for each in (one, two)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(4):
            services.tell("b", "/unready")
            services.eventually(lambda: _health(two, number) == (503, 0))
            if turn == 1:
                agent.stop(signal.SIGTERM)
                agent.start()
                agent.wait_for(partial(knows_all, two))
                services.eventually(lambda: _health(two, number) == (503, 0))
            services.tell("b", "/ready")
            services.eventually(lambda: _health(two, number) == (200, 1))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert seen[one.name] == [(503, 0)]
    assert seen[two.name] == [(200, 1), *[(503, 0), (200, 1)] * 4]


def _health(node: Node, number: int) -> tuple[int, int]:
    """Status, and how many endpoints the node has."""
    connection = http.client.HTTPConnection(node.address, number, timeout=3)
    try:
        connection.request("GET", "/healthz")
        answered = connection.getresponse()
        return answered.status, json.load(answered)["localEndpoints"]
    except OSError:
        return 0, 0
    finally:
        connection.close()


_UNSERVED = """
from towpath.api.client import Client
with Client() as client:
    print(*(each.message for each in client.status().sources["kubernetes"].unserved), sep="\\n")
"""


def test_a_node_port_that_a_process_holds(served: Served) -> None:
    """It is told by status and Event; the Service has it, and when the process ends all is well."""
    services = served.services
    one = services.cluster.nodes[0]
    number = node_ports(services.make("web", type="NodePort"))["tcp"]
    code = f"import socket, time; held = socket.create_server(('', {number})); time.sleep(1000)"
    process = one.program("held", sys.executable, "-c", code)
    process.start()
    try:
        services.eventually(lambda: f"nodePort {number}/tcp" in _unserved(one))
        services.eventually(lambda: "NodePortInUse" in _events(services))
        services.until(ALL, "outside", "tcp", one.address, number)
    finally:
        process.stop(signal.SIGKILL)
    services.eventually(lambda: "nodePort" not in _unserved(one))


def _unserved(node: Node) -> str:
    return node.run(sys.executable, "-c", _UNSERVED)


def _events(services: Services) -> str:
    found = services.plane.get("events", "--field-selector", "involvedObject.name=web")
    return json.dumps([each["reason"] for each in found["items"]])
