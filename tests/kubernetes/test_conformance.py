# SPDX-License-Identifier: Apache-2.0
"""What the API says of Services, with real pods on two nodes; kube-proxy shows that it is fair.

Each test is a rule, whose first line of text is its line in docs/kubernetes-conformance.md. More of
them are in test_conformance_fields.py and test_conformance_choice.py.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_services import OUTSIDE, PORTS, Services, port
from tools.kubernetes.cluster import server_pod

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = {"a", "b"}
KINDS = ("tcp", "udp")
CLIENTS = ("client-one", "client-two", "node one")


@pytest.fixture(autouse=True)
def _no_service_stays(services: Services) -> Iterator[None]:
    yield
    services.plane.kubectl("delete", "service", "-l", "component!=apiserver", "--wait=false")


@pytest.mark.parametrize("kind", KINDS)
def test_cluster_ips(services: Services, kind: str) -> None:
    """A ClusterIP reaches every ready endpoint, from pods and nodes, in both families."""
    services.make("web")
    for address in services.addresses("web"):
        for client in CLIENTS:
            services.until(ALL, client, kind, address, 80)


def test_clients_keep_their_address(services: Services) -> None:
    """An endpoint sees the pod's own address when it is asked by a ClusterIP."""
    services.make("web")
    for own, address in zip(
        services.pod_addresses("client-one"), services.addresses("web"), strict=True
    ):
        for kind in KINDS:
            services.until(ALL, "client-one", kind, address, 80)
            got = services.ask("client-one", kind, address, 80, count=6)
            assert {each["source"] for each in got} == {own}


def test_several_ports(services: Services) -> None:
    """Each port goes to its own target port."""
    services.make("web", ports=[port(80, 8080), port(81, 8081)])
    for address in services.addresses("web"):
        for given, target in ((80, 8080), (81, 8081)):
            services.until(ALL, "client-one", "tcp", address, given)
            got = services.ask("client-one", "tcp", address, given, count=4)
            assert {each["port"] for each in got} == {target}


def test_named_target_ports(services: Services) -> None:
    """A target port's name is looked up in each pod, where it may be another number."""
    services.cluster.make(
        server_pod("named-a", "one", {"other": 8080}, labels={"app": "named"}),
        server_pod("named-b", "two", {"other": 8090}, labels={"app": "named"}),
    )
    services.make("named", selector={"app": "named"}, ports=[port(80, "other")])
    for address in services.addresses("named"):
        services.until({"named-a", "named-b"}, "client-one", "tcp", address, 80)
        got = services.ask("client-one", "tcp", address, 80, count=12)
        assert {(each["name"], each["port"]) for each in got} == {
            ("named-a", 8080),
            ("named-b", 8090),
        }
    services.plane.kubectl("delete", "pod", "named-a", "named-b", "--now")


def test_affinity(services: Services) -> None:
    """By sessionAffinity: ClientIP each client keeps its endpoint."""
    services.make("web", sessionAffinity="ClientIP")
    for address in services.addresses("web"):
        services.until_served(address)
        for client in ("client-one", "client-two"):
            names = services.names(client, "tcp", address, 80, count=24)
            assert len(names) == 1, names
            assert names <= ALL


def test_internal_policy(services: Services) -> None:
    """By internalTrafficPolicy: Local a client reaches endpoints of its own node only."""
    services.make("web", internalTrafficPolicy="Local")
    for address in services.addresses("web"):
        services.until({"a"}, "client-one", "tcp", address, 80)
        services.until({"b"}, "client-two", "udp", address, 80)


def test_internal_policy_without_endpoints(services: Services) -> None:
    """By internalTrafficPolicy: Local none is reached where the node has none."""
    services.make("web", selector={"only": "b"}, internalTrafficPolicy="Local")
    for address in services.addresses("web"):
        services.until({"b"}, "client-two", "tcp", address, 80)
        got = services.ask("client-one", "tcp", address, 80, count=1, seconds=1)
        assert "name" not in got[0]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_node_ports(services: Services, kind: str) -> None:
    """A node port reaches every ready endpoint, by each node, from outside."""
    made = services.make("web", type="NodePort")
    number = next(p["nodePort"] for p in made["spec"]["ports"] if p["protocol"] == kind.upper())
    for node in services.cluster.nodes:
        for address in (node.address, node.address6):
            services.until(ALL, "outside", kind, address, number)


@pytest.mark.thorough
def test_node_ports_from_pods(services: Services) -> None:
    """A node port answers pods and nodes too."""
    number = services.make("web", type="NodePort")["spec"]["ports"][0]["nodePort"]
    for node in services.cluster.nodes:
        for client in ("client-one", "node two"):
            services.until(ALL, client, "tcp", node.address, number)


@pytest.mark.thorough
def test_node_ports_of_the_node_itself(services: Services) -> None:
    """A node port reaches a pod with the node's network, by each node, from outside."""
    services.cluster.make(
        server_pod("host", "two", {"host": 8180}, labels={"app": "host"}, host_network=True)
    )
    ports = [port(80, 8180), port(80, 8180, "UDP")]
    spec = {"selector": {"app": "host"}, "type": "NodePort", "ports": ports}
    made = services.make("host", **spec, ipFamilyPolicy=None)
    numbers = {each["protocol"].lower(): each["nodePort"] for each in made["spec"]["ports"]}
    for node in services.cluster.nodes:
        for kind, number in numbers.items():
            services.until({"host"}, "outside", kind, node.address, number, count=4)
    services.plane.kubectl("delete", "pod", "host", "--now")


@pytest.mark.thorough
def test_external_policy(services: Services) -> None:
    """By externalTrafficPolicy: Local a node's own endpoints are reached, which see the client."""
    made = services.make("web", type="NodePort", externalTrafficPolicy="Local")
    numbers = {each["protocol"].lower(): each["nodePort"] for each in made["spec"]["ports"]}
    for node, name in zip(services.cluster.nodes, ("a", "b"), strict=True):
        for address, own in zip((node.address, node.address6), OUTSIDE, strict=True):
            for kind, number in numbers.items():
                services.until({name}, "outside", kind, address, number)
                (got,) = services.ask("outside", kind, address, number)
                assert got["source"] == own


@pytest.mark.thorough
def test_external_policy_without_endpoints(services: Services) -> None:
    """By externalTrafficPolicy: Local none is reached by a node that has none."""
    made = services.make(
        "web", selector={"only": "b"}, type="NodePort", externalTrafficPolicy="Local"
    )
    number = made["spec"]["ports"][0]["nodePort"]
    one, two = services.cluster.nodes
    services.until({"b"}, "outside", "tcp", two.address, number)
    (got,) = services.ask("outside", "tcp", one.address, number, seconds=1)
    assert "name" not in got


def test_health_check_node_port(services: Services) -> None:
    """A healthCheckNodePort says 200 where an endpoint is ready, and 503 where none is."""
    made = services.make(
        "web", selector={"only": "b"}, type="LoadBalancer", externalTrafficPolicy="Local"
    )
    number = made["spec"]["healthCheckNodePort"]
    one, two = services.cluster.nodes
    services.eventually(lambda: _status(two.address, number) == http.HTTPStatus.OK)
    services.eventually(lambda: _status(one.address, number) == http.HTTPStatus.SERVICE_UNAVAILABLE)


def _status(address: str, number: int) -> int:
    connection = http.client.HTTPConnection(address, number, timeout=3)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_no_endpoints(services: Services) -> None:
    """Without endpoints a connection is refused at once, from pods and nodes."""
    services.make("nobody", selector={"app": "nobody"})
    for address in services.addresses("nobody"):
        for client in ("client-one", "node one"):
            services.until({"ConnectionRefusedError"}, client, "tcp", address, 80, count=2)


def test_hairpin(services: Services) -> None:
    """A pod reaches itself by its own service."""
    services.make("own", selector={"only": "a"})
    for address in services.addresses("own"):
        for kind in KINDS:
            services.until({"a"}, "a", kind, address, 80, count=4)


def test_host_network(services: Services) -> None:
    """A pod with the node's network is an endpoint and a client like any other."""
    services.cluster.make(
        server_pod("host", "two", {"host": 8180}, labels={"app": "host"}, host_network=True)
    )
    services.make("host", selector={"app": "host"}, ports=[port(80, 8180)], ipFamilyPolicy=None)
    services.make("web")
    (address,) = services.addresses("host")
    for client in ("client-one", "client-two", "node one", "host"):
        services.until({"host"}, client, "tcp", address, 80, count=4)
    for each in services.addresses("web"):
        services.until(ALL, "host", "tcp", each, 80)
    services.plane.kubectl("delete", "pod", "host", "--now")


def test_unready_endpoints(services: Services) -> None:
    """Endpoints that aren't ready get nothing new, but by publishNotReadyAddresses."""
    services.make("web")
    services.make("published", publishNotReadyAddresses=True)
    address, published = services.addresses("web")[0], services.addresses("published")[0]
    services.until(ALL, "client-one", "tcp", address, 80)
    services.tell("a", "/unready")
    try:
        services.until({"b"}, "client-one", "tcp", address, 80)
        services.until(ALL, "client-one", "tcp", published, 80)
    finally:
        services.tell("a", "/ready")
    services.until(ALL, "client-one", "tcp", address, 80)


def test_terminating_endpoints(services: Services) -> None:
    """Endpoints that terminate and serve are used while no other is ready, and only then."""
    pods = [server_pod("ends", "one", PORTS, labels={"app": "ends"}, linger=20)]
    services.cluster.make(*pods)
    services.make("ends", selector={"app": "ends"})
    address = services.addresses("ends")[0]
    services.until({"ends"}, "client-two", "tcp", address, 80, count=4)
    services.plane.kubectl("delete", "pod", "ends", "--wait=false")
    services.eventually(lambda: "deletionTimestamp" in services.cluster.pod("ends")["metadata"])
    services.until({"ends"}, "client-two", "tcp", address, 80, count=4)
    services.cluster.make(server_pod("next", "two", PORTS, labels={"app": "ends"}))
    services.until({"next"}, "client-two", "tcp", address, 80)
    services.plane.kubectl("delete", "pod", "ends", "next", "--now")


@pytest.mark.thorough
def test_load_balancer_addresses(services: Services) -> None:
    """An address in status.loadBalancer reaches every ready endpoint, from inside and outside."""
    services.make("web", type="LoadBalancer")
    services.give("web", {"ip": "198.51.100.20"})
    with services.routed("198.51.100.20"):
        services.until(ALL, "outside", "tcp", "198.51.100.20", 80)
        services.until(ALL, "client-one", "tcp", "198.51.100.20", 80)


@pytest.mark.thorough
def test_source_ranges(services: Services) -> None:
    """With loadBalancerSourceRanges all others are refused."""
    services.make("web", type="LoadBalancer", loadBalancerSourceRanges=[f"{OUTSIDE[0]}/32"])
    services.make("closed", type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.0/24"])
    services.give("web", {"ip": "198.51.100.20"})
    services.give("closed", {"ip": "198.51.100.21"})
    with services.routed("198.51.100.20", "198.51.100.21"):
        services.until(ALL, "outside", "tcp", "198.51.100.20", 80)
        services.until({"TimeoutError"}, "outside", "tcp", "198.51.100.21", 80, 1, seconds=1)


@pytest.mark.thorough
def test_external_ips(services: Services) -> None:
    """An address of externalIPs reaches every ready endpoint, where it is allowed."""
    services.make("web", externalIPs=["198.51.100.30"])
    with services.routed("198.51.100.30"):
        services.until(ALL, "outside", "tcp", "198.51.100.30", 80)


def test_changes(services: Services) -> None:
    """A changed selector, port and type are obeyed; a deleted service is gone."""
    services.make("web", selector={"only": "a"})
    address = services.addresses("web")[0]
    services.until({"a"}, "client-one", "tcp", address, 80, count=4)
    services.make("web", selector={"only": "b"})
    services.until({"b"}, "client-one", "tcp", address, 80, count=4)
    services.make("web", selector={"only": "b"}, ports=[port(88, 8081)])
    services.until({"b"}, "client-one", "tcp", address, 88, count=4)
    assert "name" not in services.ask("client-one", "tcp", address, 80, seconds=1)[0]
    services.plane.kubectl("delete", "service", "web")
    services.eventually(
        lambda: "name" not in services.ask("client-one", "tcp", address, 88, seconds=1)[0]
    )


def test_same_node_is_preferred(services: Services) -> None:
    """By trafficDistribution: PreferSameNode clients keep to their node if it has an endpoint."""
    services.make("web", trafficDistribution="PreferSameNode")
    address = services.addresses("web")[0]
    services.until({"a"}, "client-one", "tcp", address, 80)
    services.until({"b"}, "client-two", "tcp", address, 80)


def test_headless(services: Services) -> None:
    """A headless service has no address to serve, and keeps no other from being served."""
    services.make("headless", clusterIP="None")
    services.make("web")
    assert services.addresses("headless") == ["None"]
    services.until(ALL, "client-one", "tcp", services.addresses("web")[0], 80)
