# SPDX-License-Identifier: Apache-2.0
"""Fields of Services one by one, and their changes: each rule as in test_conformance.py."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_services import OUTSIDE, PORTS, Services, port
from tools.kubernetes import pod as program
from tools.kubernetes.cluster import server_pod
from tools.kubernetes.node import ip

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

ALL = {"a", "b"}
VIP, VIP6 = "198.51.100.20", "2001:db8:20::20"


@pytest.fixture(autouse=True)
def _nothing_stays(services: Services) -> Iterator[None]:
    yield
    services.plane.kubectl("delete", "service", "-l", "component!=apiserver", "--wait=false")
    services.plane.kubectl("delete", "endpointslice", "-l", "own", "--wait=false")


@contextmanager
def server(name: str, number: int) -> Iterator[None]:
    """Somebody outside of the cluster who serves."""
    words = [sys.executable, str(Path(program.__file__)), "serve", str(number)]
    process = subprocess.Popen(words, env=os.environ | {"NAME": name})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def silent(services: Services, client: str, address: str, number: int) -> bool:
    """Whether nobody answers."""
    return "name" not in services.ask(client, "tcp", address, number, seconds=1)[0]


# ---- What it is ----------------------------------------------------------------------------------


def test_external_name(services: Services) -> None:
    """One that becomes an ExternalName has no address; back again it has live endpoints only."""
    services.cluster.make(
        server_pod("lives", "one", PORTS, labels={"app": "alias"}),
        server_pod("dies", "two", PORTS, labels={"app": "alias"}),
    )
    services.make("alias", selector={"app": "alias"})
    address = services.addresses("alias")[0]
    services.until({"lives", "dies"}, "client-one", "tcp", address, 80)
    gone = dict.fromkeys(("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"))
    services.change("alias", type="ExternalName", externalName="example.org", **gone)
    services.eventually(lambda: silent(services, "client-one", address, 80))
    services.plane.kubectl("delete", "pod", "dies", "--now")
    services.change("alias", type="ClusterIP")
    again = services.addresses("alias")[0]
    services.until({"lives"}, "client-one", "tcp", again, 80)
    assert again == address or silent(services, "client-one", address, 80)
    services.plane.kubectl("delete", "pod", "lives", "--now")


def test_types_change(services: Services) -> None:
    """A node port that is changed or given up is gone, and the new one is served."""
    services.make("web", type="NodePort", ports=[port(80, nodePort=30123)])
    one = services.cluster.nodes[0]
    services.until(ALL, "outside", "tcp", one.address, 30123)
    services.make("web", type="NodePort", ports=[port(80, nodePort=30124)])
    services.until(ALL, "outside", "tcp", one.address, 30124)
    services.eventually(lambda: silent(services, "outside", one.address, 30123))
    services.change("web", type="ClusterIP")
    services.eventually(lambda: silent(services, "outside", one.address, 30124))
    services.until(ALL, "client-one", "tcp", services.addresses("web")[0], 80)


def test_cluster_ip_by_name(services: Services) -> None:
    """A clusterIP may be named; a service that gets a deleted one's is the only one there."""
    services.make("old", selector={"only": "a"}, clusterIP="10.96.7.7", ipFamilyPolicy=None)
    services.until({"a"}, "client-one", "tcp", "10.96.7.7", 80, count=4)
    services.plane.kubectl("delete", "service", "old")
    services.make("new", selector={"only": "b"}, clusterIP="10.96.7.7", ipFamilyPolicy=None)
    services.until({"b"}, "client-one", "tcp", "10.96.7.7", 80, count=4)


def test_families_change(services: Services) -> None:
    """A service of one family has that; the other one comes and goes with ipFamilyPolicy."""
    services.make("web", ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"])
    (six,) = services.addresses("web")
    assert ":" in six
    services.until(ALL, "client-one", "tcp", six, 80)
    services.change("web", ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv6", "IPv4"])
    _, four = services.addresses("web")
    for kind in ("tcp", "udp"):
        services.until(ALL, "client-one", kind, four, 80)
    gone = {"clusterIPs": [six], "clusterIP": six, "ipFamilies": ["IPv6"]}
    services.change("web", ipFamilyPolicy="SingleStack", **gone)
    services.eventually(lambda: silent(services, "client-one", four, 80))
    services.until(ALL, "client-one", "tcp", six, 80)


def test_selector_is_taken_away(services: Services) -> None:
    """A service without a selector keeps its endpoints, or has those that others write."""
    services.make("web")
    address = services.addresses("web")[0]
    services.until(ALL, "client-one", "tcp", address, 80)
    services.change("web", selector=None)
    services.until(ALL, "client-one", "tcp", address, 80)


def test_slices_of_ones_own(services: Services) -> None:
    """Endpoints may be outside of the cluster, in slices that somebody writes."""
    spec = {"ports": [{"name": "web", "port": 80}], "ipFamilyPolicy": "RequireDualStack"}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "own"}, "spec": spec}
    ]
    for family, address in zip(("IPv4", "IPv6"), OUTSIDE, strict=True):
        labels = {"kubernetes.io/service-name": "own", "own": "yes"}
        made.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"own-{family.lower()}", "labels": labels},
                "addressType": family,
                "ports": [{"name": "web", "port": 8180}],
                "endpoints": [{"addresses": [address]}],
            }
        )
    services.plane.apply(*made)
    with server("outer", 8180):
        for address in services.addresses("own"):
            for client in ("client-one", "node two"):
                services.until({"outer"}, client, "tcp", address, 80, count=2)


# ---- Addresses of others -------------------------------------------------------------------------


def test_load_balancers_without_node_ports(services: Services) -> None:
    """Whatever its loadBalancerClass, and without node ports: its addresses are served."""
    made = services.make(
        "web",
        type="LoadBalancer",
        loadBalancerClass="example.org/any",
        allocateLoadBalancerNodePorts=False,
    )
    assert not any("nodePort" in each for each in made["spec"]["ports"])
    services.give("web", {"ip": VIP}, {"ip": VIP6}, {"hostname": "web.example.org"})
    with services.routed(VIP, VIP6):
        for address in (VIP, VIP6):
            for client in ("outside", "client-one", "node two"):
                for kind in ("tcp", "udp"):
                    services.until(ALL, client, kind, address, 80)
    services.give("web")
    services.eventually(lambda: silent(services, "client-one", VIP, 80))


def test_ip_mode(services: Services) -> None:
    """By ipMode: Proxy an address is left to the load balancer, by VIP it is served."""
    services.make("web", type="LoadBalancer")
    services.give("web", {"ip": VIP, "ipMode": "Proxy"})
    ip("addr", "add", f"{VIP}/32", "dev", "lo")
    try:
        with server("balancer", 80):
            for client in ("client-one", "node two"):
                services.until({"balancer"}, client, "tcp", VIP, 80, count=4)
            services.give("web", {"ip": VIP, "ipMode": "VIP"})
            for client in ("client-one", "node two"):
                services.until(ALL, client, "tcp", VIP, 80)
    finally:
        ip("addr", "del", f"{VIP}/32", "dev", "lo")


def test_source_ranges_in_both_families(services: Services) -> None:
    """By loadBalancerSourceRanges others are refused in each family, in the cluster as well."""
    spec = {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}
    open_to = [f"{OUTSIDE[0]}/32", f"{OUTSIDE[1]}/128"]
    services.make("web", **spec, loadBalancerSourceRanges=open_to)
    services.make("closed", **spec, loadBalancerSourceRanges=["203.0.113.0/24", "2001:db8::/64"])
    services.give("web", {"ip": VIP}, {"ip": VIP6})
    closed = ("198.51.100.21", "2001:db8:20::21")
    services.give("closed", *({"ip": each} for each in closed))
    with services.routed(VIP, VIP6, *closed):
        for address, other in zip((VIP, VIP6), closed, strict=True):
            for kind in ("tcp", "udp"):
                services.until(ALL, "outside", kind, address, 80)
                got = services.ask("outside", kind, other, 80, seconds=1)
                assert "name" not in got[0]
            for client in ("client-one", "node two"):
                assert silent(services, client, other, 80)
        services.change("closed", loadBalancerSourceRanges=None)
        for address in closed:
            services.until(ALL, "outside", "tcp", address, 80)


def test_source_ranges_that_let_all_in(services: Services) -> None:
    """A range of loadBalancerSourceRanges that is all of a family is none: clients here come in."""
    ranges = ["0.0.0.0/0", "::/0", "203.0.113.0/24"]
    services.make("web", type="LoadBalancer", loadBalancerSourceRanges=ranges)
    services.give("web", {"ip": VIP}, {"ip": VIP6})
    for address in (VIP, VIP6):
        for client in ("client-one", "node two"):
            services.until(ALL, client, "tcp", address, 80)


def test_source_ranges_of_one_family(services: Services) -> None:
    """By loadBalancerSourceRanges of one family nobody of the other one is let in."""
    services.make("web", type="LoadBalancer", loadBalancerSourceRanges=[f"{OUTSIDE[0]}/32"])
    services.give("web", {"ip": VIP}, {"ip": VIP6})
    with services.routed(VIP, VIP6):
        services.until(ALL, "outside", "tcp", VIP, 80)
        if services.proxy == "kube-proxy":
            services.until(ALL, "outside", "tcp", VIP6, 80)
            pytest.skip("no: everybody")
        assert silent(services, "outside", VIP6, 80)


def test_external_ips_from_inside(services: Services) -> None:
    """An address of externalIPs is served in both families, and for pods and nodes."""
    services.make("web", externalIPs=["198.51.100.30", "2001:db8:30::30"])
    with services.routed("2001:db8:30::30"):
        for client in ("outside", "client-one", "node two"):
            services.until(ALL, client, "udp", "2001:db8:30::30", 80)
    for client in ("client-one", "node two"):
        services.until(ALL, client, "tcp", "198.51.100.30", 80)


# ---- Health --------------------------------------------------------------------------------------


def test_health_answers(services: Services) -> None:
    """A healthCheckNodePort names the Service and says how many endpoints are ready."""
    made = services.make(
        "web", selector={"only": "b"}, type="LoadBalancer", externalTrafficPolicy="Local"
    )
    number = made["spec"]["healthCheckNodePort"]
    one, two = services.cluster.nodes
    for address in (two.address, two.address6):
        services.eventually(partial(_is_well, address, number))
        status, body, weight, kind = _health(address, number)
        assert body == {
            "service": {"namespace": "default", "name": "web"},
            "localEndpoints": 1,
            "serviceProxyHealthy": True,
        }
        assert (weight, kind.partition(";")[0]) == ("1", "application/json")
    services.eventually(lambda: _health(one.address, number)[0] != 0)
    status, body, weight, _ = _health(one.address, number)
    assert (status, body["localEndpoints"], weight) == (503, 0, "0")
    services.change("web", externalTrafficPolicy="Cluster")
    services.eventually(lambda: _health(two.address, number)[0] == 0)


def _is_well(address: str, number: int) -> bool:
    return _health(address, number)[0] == http.HTTPStatus.OK


def _health(address: str, number: int) -> tuple[int, dict[str, Any], str, str]:
    connection = http.client.HTTPConnection(address, number, timeout=3)
    try:
        connection.request("GET", "/")
        answered = connection.getresponse()
        weight = answered.headers["X-Load-Balancing-Endpoint-Weight"]
        return answered.status, json.load(answered), weight, answered.headers["Content-Type"]
    except OSError:
        return 0, {}, "", ""
    finally:
        connection.close()
