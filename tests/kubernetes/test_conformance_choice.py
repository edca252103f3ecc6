# SPDX-License-Identifier: Apache-2.0
"""Which endpoints get connections, as the API says it: each rule as in test_conformance.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_services import OUTSIDE, PORTS, Services
from tools.kubernetes.cluster import server_pod

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

ALL = {"a", "b"}
ZONE = "topology.kubernetes.io/zone"
NODES = {"a": "one", "b": "two"}


@pytest.fixture(autouse=True)
def _nothing_stays(services: Services) -> Iterator[None]:
    yield
    services.plane.kubectl("delete", "service", "-l", "component!=apiserver", "--wait=false")
    services.plane.kubectl("delete", "endpointslice", "-l", "own", "--wait=false")
    services.plane.kubectl("label", "node", "--all", f"{ZONE}-")


def affinity(seconds: int) -> dict[str, Any]:
    """Fields of a service."""
    config = {"clientIP": {"timeoutSeconds": seconds}}
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}


def moved(services: Services, address: str) -> tuple[str, str]:
    """Have ``client-one`` lose its endpoint and get another; return both, ready again."""
    (first,) = services.names("client-one", "tcp", address, 80)
    (other,) = ALL - {first}
    services.tell(first, "/unready")
    try:
        services.until({other}, "client-one", "tcp", address, 80, count=2)
    finally:
        services.tell(first, "/ready")
    return first, other


def until_ready(services: Services, address: str, kept: str | None = None) -> None:
    """Wait until another service has all endpoints; ask ``kept`` meanwhile, which stays in use."""
    services.make("plain")
    plain = services.addresses("plain")[0]

    def done() -> bool:
        if kept is not None:
            services.ask("client-one", "tcp", address, 80)
        return services.names("client-two", "tcp", plain, 80) == ALL

    services.eventually(done)


def test_affinity_is_renewed(services: Services) -> None:
    """By sessionAffinity a client stays with the endpoint that it was given while it asks."""
    services.make("web", **affinity(9))
    address = services.addresses("web")[0]
    services.until_served(address)
    _, other = moved(services, address)
    until_ready(services, address, other)
    for _ in range(4):
        time.sleep(3)
        assert services.names("client-one", "tcp", address, 80, count=2) == {other}


def test_affinity_ends(services: Services) -> None:
    """After timeoutSeconds without a connection a client may get any endpoint."""
    services.make("web", **affinity(2))
    address = services.addresses("web")[0]
    services.until_served(address)
    first, _ = moved(services, address)
    until_ready(services, address)
    services.eventually(lambda: _after_a_pause(services, address) == {first})


def _after_a_pause(services: Services, address: str) -> set[str]:
    """Who answers two requests at once, after more than two seconds."""
    time.sleep(3)
    return services.names("client-one", "tcp", address, 80, count=2)


def test_affinity_changes(services: Services) -> None:
    """A change of sessionAffinity and of its time is obeyed."""
    services.make("web", **affinity(10800))
    address = services.addresses("web")[0]
    services.until_served(address)
    first, other = moved(services, address)
    until_ready(services, address, other)
    assert services.names("client-one", "tcp", address, 80) == {other}
    services.change("web", **affinity(2))
    services.eventually(lambda: _after_a_pause(services, address) == {first})
    services.change("web", sessionAffinity="None", sessionAffinityConfig=None)
    services.until(ALL, "client-one", "tcp", address, 80)
    services.change("web", **affinity(10800))
    services.eventually(lambda: len(services.names("client-one", "tcp", address, 80)) == 1)


def test_affinity_at_node_ports(services: Services) -> None:
    """By sessionAffinity a client outside keeps its endpoint at a node port."""
    made = services.make("web", type="NodePort", **affinity(60))
    one = services.cluster.nodes[0]
    numbers = {each["protocol"].lower(): each["nodePort"] for each in made["spec"]["ports"]}
    for address in (one.address, one.address6):
        for kind, number in numbers.items():
            services.until_answered("outside", kind, address, number)
            assert len(services.names("outside", kind, address, number, count=24)) == 1


# ---- Near ones -----------------------------------------------------------------------------------


def zones(services: Services, **of: str) -> None:
    """Say which zones nodes are in."""
    for node, zone in of.items():
        services.plane.kubectl("label", "node", node, f"{ZONE}={zone}", "--overwrite")


@pytest.mark.parametrize("wish", ["PreferSameZone", "PreferClose", "PreferSameNode"])
def test_near_endpoints_are_preferred(services: Services, wish: str) -> None:
    """By trafficDistribution clients keep to their zone or node, if an endpoint there is ready."""
    zones(services, one="left", two="right")
    services.make("web", trafficDistribution=wish)
    for address in services.addresses("web"):
        services.until({"a"}, "client-one", "tcp", address, 80)
        services.until({"b"}, "client-two", "udp", address, 80)
    address = services.addresses("web")[0]
    services.tell("a", "/unready")
    try:
        services.until({"b"}, "client-one", "tcp", address, 80)
    finally:
        services.tell("a", "/ready")
    services.until({"a"}, "client-one", "tcp", address, 80)
    services.change("web", trafficDistribution=None)
    services.until(ALL, "client-one", "tcp", address, 80)


def slices(services: Services, **hints: dict[str, Any]) -> str:
    """A service whose slice says this of pods ``a`` and ``b``; return its address."""
    services.plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "own"},
            "spec": {"ports": [{"name": "web", "port": 80, "protocol": "TCP"}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "own-1",
                "labels": {"kubernetes.io/service-name": "own", "own": "yes"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": services.pod_addresses(name)[:1],
                    "conditions": {"ready": True},
                    "nodeName": NODES[name],
                }
                | more
                for name, more in hints.items()
            ],
        },
    )
    return services.addresses("own")[0]


def hint(zone: str | None = None, node: str | None = None) -> dict[str, Any]:
    """What a slice says of who an endpoint is for."""
    found: dict[str, Any] = {} if zone is None else {"forZones": [{"name": zone}]}
    if node is not None:
        found["forNodes"] = [{"name": node}]
    return {"hints": found}


def test_hints(services: Services) -> None:
    """Hints of slices count if every ready endpoint has one and one is for here; nodes first."""
    zones(services, one="left", two="right")
    address = slices(services, a=hint("right"), b=hint("left"))
    services.until({"b"}, "client-one", "tcp", address, 80)
    services.until({"a"}, "client-two", "tcp", address, 80)
    slices(services, a=hint("right"), b={})
    services.until(ALL, "client-one", "tcp", address, 80)
    slices(services, a=hint("right", "one"), b=hint("left", "two"))
    services.until({"a"}, "client-one", "tcp", address, 80)
    slices(services, a=hint("elsewhere"), b=hint("right"))
    services.until(ALL, "client-one", "tcp", address, 80)
    services.until({"b"}, "client-two", "tcp", address, 80)
    slices(services, a=hint("right", "three"), b=hint("left", "three"))
    services.until({"b"}, "client-one", "tcp", address, 80)
    unready = {"conditions": {"ready": False}}
    slices(services, a=hint("left"), b=unready)
    services.until({"a"}, "client-one", "tcp", address, 80)
    services.until({"a"}, "client-two", "tcp", address, 80)


# ---- Ends ----------------------------------------------------------------------------------------


def end(services: Services, *names: str) -> None:
    """Forget pods, however long they take to end."""
    services.plane.kubectl("delete", "pod", *names, "--force", "--grace-period=0")


def test_only_terminating_is_near(services: Services) -> None:
    """By both policies Local an own endpoint that terminates and serves comes before others'."""
    services.cluster.make(
        server_pod("ends", "one", PORTS, labels={"app": "ends"}, linger=25),
        server_pod("stays", "two", PORTS, labels={"app": "ends"}),
    )
    made = services.make(
        "ends",
        selector={"app": "ends"},
        type="NodePort",
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local",
    )
    number = made["spec"]["ports"][0]["nodePort"]
    one, two = services.cluster.nodes
    cluster = services.addresses("ends")[0]
    services.until({"ends"}, "outside", "tcp", one.address, number)
    services.plane.kubectl("delete", "pod", "ends", "--wait=false")
    services.eventually(lambda: "deletionTimestamp" in services.cluster.pod("ends")["metadata"])
    services.until({"ends"}, "outside", "tcp", one.address, number)
    services.until({"ends"}, "client-one", "tcp", cluster, 80)
    services.until({"stays"}, "outside", "tcp", two.address, number)
    (got,) = services.ask("outside", "tcp", one.address, number)
    assert got["source"] == OUTSIDE[0]
    end(services, "ends", "stays")


def test_terminating_and_published(services: Services) -> None:
    """By publishNotReadyAddresses an endpoint that terminates gets its share beside ready ones."""
    services.cluster.make(
        server_pod("ends", "one", PORTS, labels={"app": "ends"}, linger=25),
        server_pod("stays", "two", PORTS, labels={"app": "ends"}),
    )
    services.make("ends", selector={"app": "ends"}, publishNotReadyAddresses=True)
    services.make("usual", selector={"app": "ends"})
    published, usual = (services.addresses(each)[0] for each in ("ends", "usual"))
    services.until({"ends", "stays"}, "client-one", "tcp", published, 80)
    services.plane.kubectl("delete", "pod", "ends", "--wait=false")
    services.until({"stays"}, "client-one", "tcp", usual, 80)
    services.until({"ends", "stays"}, "client-one", "tcp", published, 80)
    end(services, "ends", "stays")


def test_policy_local_for_the_node_itself(services: Services) -> None:
    """By externalTrafficPolicy: Local what a node sends to external addresses goes to all."""
    services.make("web", type="LoadBalancer", externalTrafficPolicy="Local")
    services.give("web", {"ip": "198.51.100.20"})
    for client in ("node one", "node two"):
        services.until(ALL, client, "tcp", "198.51.100.20", 80)
