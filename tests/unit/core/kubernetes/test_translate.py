# SPDX-License-Identifier: Apache-2.0
"""Each field of a Service, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.kubernetes.harness_cluster import (
    ADDRESS,
    ADDRESS6,
    ALLOWED,
    NAME,
    VIP,
    VIP6,
    Told,
    addresses,
    endpoint,
    ports,
    terminating,
)

from towpath.core.kubernetes.addresses import read_address, read_prefix
from towpath.core.kubernetes.translate import table_size
from towpath.model import Affinity, Protocol

BOTH = frozenset({4, 6})
NODE_PORT = {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}
NODE_NAME = f"default:web:http:node:{ADDRESS}"
LB = {"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "VIP"}]}}
LB_NAME = "default:web:http:lb:198.51.100.9"


def made(**settings: Any) -> Told:
    """A node in zone a."""
    told = Told(**settings)
    told.node()
    return told


def test_a_cluster_ip() -> None:
    """For what begins on this node, at the target's port."""
    told = made(outside=BOTH)
    told.service()
    told.slice("a", "10.244.0.1")
    (service,) = told.take().values()
    assert service.name == NAME
    assert (str(service.vip), service.port, service.protocol) == (VIP, 80, Protocol.TCP)
    assert service.scope == "node"
    assert told.backends() == {"10.244.0.1": 8080}


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"type": "ExternalName", "externalName": "example.org"},
        {"type": "ExternalName", "externalName": "example.org", "clusterIP": ""},
        {"meta": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}},
    ],
)
def test_what_is_not_ours(spec: dict[str, Any]) -> None:
    """Headless; ExternalName, by its type alone; another proxy's. Nothing is told of it."""
    told = made()
    told.service(**spec)
    told.slice("a", "10.244.0.1")
    assert told.take() == {}
    assert told.refused() == ""


def test_it_was_an_external_name() -> None:
    """``externalName`` stays when the type is another one by then."""
    told = made()
    told.service(externalName="example.org")
    assert list(told.take()) == [NAME]
    told.service(type="ExternalName", externalName="example.org")
    assert told.take() == {}


def test_a_proxy_name_of_ours() -> None:
    """Then only those that have it."""
    told = made(proxy_name="towpath")
    told.service()
    assert told.take() == {}
    told.service(meta={"labels": {"service.kubernetes.io/service-proxy-name": "towpath"}})
    assert list(told.take()) == [NAME]


def test_several_ports_and_both_families() -> None:
    """Each of each; the same number for TCP and UDP."""
    told = made()
    listed = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "named"},
    ]
    told.service(clusterIPs=[VIP, VIP6], ports=listed)
    both = [*ports(5353, "dns", "UDP"), *ports(5454, "dns-tcp")]
    told.slice("a", "10.244.0.1", ports=both)
    told.slice("b", endpoint("fd44::1"), ports=both, addressType="IPv6")
    told.slice("c", endpoint("example.org"), ports=both, addressType="FQDN")
    assert {name.removeprefix("default:web:") for name in told.take()} == {
        f"dns:cluster:{VIP}",
        f"dns:cluster:{VIP6}",
        f"dns-tcp:cluster:{VIP}",
        f"dns-tcp:cluster:{VIP6}",
    }
    assert told.backends(f"default:web:dns:cluster:{VIP}") == {"10.244.0.1": 5353}
    assert told.backends(f"default:web:dns-tcp:cluster:{VIP6}") == {"fd44::1": 5454}


def test_a_port_without_a_name() -> None:
    """Is called by its number."""
    told = made()
    told.service(ports=[{"port": 80, "protocol": "TCP", "targetPort": 80}])
    told.slice("a", "10.244.0.1", ports=[{"name": "", "port": 80, "protocol": "TCP"}])
    assert told.backends(f"default:web:80:cluster:{VIP}") == {"10.244.0.1": None}


def test_sctp_is_refused() -> None:
    """And the rest served."""
    told = made()
    told.service(ports=[NODE_PORT, {"name": "tel", "port": 90, "protocol": "SCTP"}])
    assert list(told.take()) == [NAME]
    assert "port 90/SCTP isn't served" in told.refused()


def test_node_ports() -> None:
    """At the first internal address of each family that the Service has; or at those allowed."""
    told = made()
    told.node("n1", "a", "192.0.2.1", "192.0.2.9", "2001:db8::1")
    told.service(type="NodePort", ports=[NODE_PORT])
    told.slice("a", "10.244.0.1")
    services = told.take()
    assert set(services) == {NAME, f"{NODE_NAME}:node"}
    assert services[f"{NODE_NAME}:node"].port == 30080
    told.service(type="NodePort", ports=[NODE_PORT], clusterIPs=[VIP, VIP6])
    assert f"default:web:http:node:{ADDRESS6}:node" in told.take()
    told = made(node_port_addresses=(read_prefix("192.0.2.8/29"),))
    told.node("n1", "a", "192.0.2.1", "192.0.2.9")
    told.service(type="NodePort", ports=[NODE_PORT])
    assert set(told.take()) == {NAME, "default:web:http:node:192.0.2.9:node"}


def test_what_comes_from_outside() -> None:
    """Where it can be translated one service is for all; without, for this node."""
    told = made(outside=BOTH)
    told.service(type="NodePort", ports=[NODE_PORT])
    found = told.take()[f"{NODE_NAME}:all"]
    assert (found.scope, found.forwarding) == ("all", "snat")


def test_external_policy_local() -> None:
    """From outside to this node's endpoints; from here to all."""
    told = made(outside=BOTH)
    told.service(type="NodePort", ports=[NODE_PORT], externalTrafficPolicy="Local")
    told.slice("a", "10.244.0.1", endpoint("10.244.1.1", nodeName="n2"))
    told.node("n2", "b", "192.0.2.2")
    assert set(told.backends(f"{NODE_NAME}:all")) == {"10.244.0.1"}
    assert set(told.backends(f"{NODE_NAME}:node")) == {"10.244.0.1", "10.244.1.1"}
    told.slice("a", terminating("10.244.0.1"), endpoint("10.244.1.1", nodeName="n2"))
    assert set(told.backends(f"{NODE_NAME}:all")) == {"10.244.0.1"}, "serving before remote"


def test_who_is_on_this_node() -> None:
    """By its slice's nodeName, in what is for outside: one way for all is enough for sockets."""
    told = made(outside=BOTH)
    told.service(type="NodePort", ports=[NODE_PORT])
    elsewhere, nowhere = endpoint("10.244.1.1", nodeName="n2"), endpoint("10.244.0.9")
    del nowhere["nodeName"]
    told.slice("a", "10.244.0.1", elsewhere, nowhere, terminating("10.244.0.2"))
    told.node("n2", "b", "192.0.2.2")

    def local(name: str) -> set[str]:
        return {str(each.address) for each in told.take()[name].backends if each.local}

    assert local(f"{NODE_NAME}:all") == {"10.244.0.1", "10.244.0.2"}
    assert local(NAME) == set()
    told.slice("a", "10.244.1.1", endpoint("10.244.0.1", nodeName="n2"))
    assert local(f"{NODE_NAME}:all") == {"10.244.1.1"}, "addresses are used again elsewhere"


def test_internal_policy_local() -> None:
    """To this node's endpoints, or to nobody."""
    told = made()
    told.node("n2", "b", "192.0.2.2")
    told.service(internalTrafficPolicy="Local")
    told.slice("a", endpoint("10.244.1.1", nodeName="n2"))
    assert told.backends() == {}
    told.slice("a", "10.244.0.1", endpoint("10.244.1.1", nodeName="n2"))
    assert set(told.backends()) == {"10.244.0.1"}


def test_load_balancers() -> None:
    """By the addresses in the status, whatever the class; not those of mode Proxy."""
    told = made()
    spec = {"type": "LoadBalancer", "loadBalancerClass": "example.org/any", "ports": [NODE_PORT]}
    told.service(**spec)
    assert not any(":lb:" in name for name in told.take())
    told.service(**spec, status=LB)
    told.slice("a", "10.244.0.1")
    assert told.backends(f"{LB_NAME}:node") == {"10.244.0.1": 8080}
    proxied = {"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "Proxy"}]}}
    told.service(**spec, status=proxied)
    assert not any(":lb:" in name for name in told.take())
    told.service(**spec, status={"loadBalancer": {"ingress": [{"hostname": "x"}, {"ip": VIP6}]}})
    assert not any(":lb:" in name for name in told.take())
    assert "the Service has no IPv6" in told.refused()


def test_source_ranges() -> None:
    """For the load balancer's address only; as they are stored."""
    told = made()
    spec = {"type": "LoadBalancer", "ports": [NODE_PORT], "status": LB}
    ranges = [" 10.0.0.0/8 ", "192.0.2.7/24", "010.1.0.0/16", "::ffff:203.0.113.0/120", "fd00::/8"]
    told.service(**spec, loadBalancerSourceRanges=ranges)
    services = told.take()
    assert [str(each) for each in services[f"{LB_NAME}:node"].allow_from or ()] == [
        "10.0.0.0/8",
        "192.0.2.0/24",
        "10.1.0.0/16",
        "203.0.113.0/24",
    ]
    assert services[NAME].allow_from is None
    told.service(**spec, loadBalancerSourceRanges=["192.0.2.0/24", "0.0.0.0/0"])
    assert told.take()[f"{LB_NAME}:node"].allow_from is None, "all of the family"
    told.service(**spec, loadBalancerSourceRanges=["nonsense"])
    assert f"{LB_NAME}:node" not in told.take(), "nobody is let in, not everybody"
    assert "'nonsense' lets nobody in" in told.refused()
    told.service(**spec, loadBalancerSourceRanges=["fd00::/8"])
    assert f"{LB_NAME}:node" not in told.take()


def test_external_addresses() -> None:
    """Only those that are allowed: the API takes any, its own included."""
    told = made(external_ips=ALLOWED)
    told.service(externalIPs=["198.51.100.7", "10.96.0.1", "2001:db8::7"])
    assert set(told.take()) == {NAME, "default:web:http:external:198.51.100.7:node"}
    assert "10.96.0.1 isn't served: kubernetes.external_ips doesn't allow it" in told.refused()


@pytest.mark.parametrize(
    ("config", "seconds"), [(None, 10800), ({"clientIP": {"timeoutSeconds": 60}}, 60), ({}, 10800)]
)
def test_affinity(config: object, seconds: int) -> None:
    """With its time."""
    told = made()
    told.service(sessionAffinity="ClientIP", sessionAffinityConfig=config)
    assert told.take()[NAME].affinity == Affinity(seconds)
    told.service(sessionAffinity="None", sessionAffinityConfig=config)
    assert told.take()[NAME].affinity is None


def hinted(address: str, *zones: str, node: str | None = None) -> dict[str, Any]:
    """An endpoint that is meant for some."""
    hints: dict[str, Any] = {"forZones": [{"name": each} for each in zones]}
    if node:
        hints["forNodes"] = [{"name": node}]
    return endpoint(address, hints=hints)


def test_hints() -> None:
    """If all that are ready have some, and some are for here; nodes before zones."""
    told = made()
    told.service(trafficDistribution="PreferSameZone")
    told.slice("a", hinted("10.244.0.1", "a"), hinted("10.244.0.2", "b"))
    assert set(told.backends()) == {"10.244.0.1"}
    told.slice("a", hinted("10.244.0.1", "a"), "10.244.0.2")
    assert len(told.backends()) == 2, "one has none"
    told.slice("a", hinted("10.244.0.1", "c"), hinted("10.244.0.2", "b"))
    assert len(told.backends()) == 2, "none is for here"
    told.slice("a", hinted("10.244.0.1", "a", node="n2"), hinted("10.244.0.2", "b", node="n1"))
    assert set(told.backends()) == {"10.244.0.2"}
    told.slice("a", hinted("10.244.0.1", "a"), hinted("10.244.0.2", "b"), terminating("10.244.0.3"))
    assert set(told.backends()) == {"10.244.0.1"}


def test_a_zone_that_comes_late() -> None:
    """The Node's label: all is looked at again."""
    told = Told()
    told.service()
    told.slice("a", hinted("10.244.0.1", "a"), hinted("10.244.0.2", "b"))
    assert len(told.backends()) == 2
    told.node(zone="a")
    assert set(told.backends()) == {"10.244.0.1"}


def test_the_health_check_port() -> None:
    """Ready endpoints of this node in each family, each address once."""
    told = made()
    told.node("n2", "b", "192.0.2.2")
    spec = {
        "type": "LoadBalancer",
        "ports": [NODE_PORT],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000,
    }
    told.service(**spec)
    told.slice("a", "10.244.0.1", terminating("10.244.0.2"), endpoint("10.244.1.1", nodeName="n2"))
    told.slice("b", "10.244.0.1", "10.244.0.3")
    told.slice("c", "fd00::1", addressType="IPv6")
    told.take()
    found = told.cluster.health()[31000]
    assert (found.namespace, found.name, found.local) == ("default", "web", {4: 2, 6: 1})
    told.service(**spec | {"externalTrafficPolicy": "Cluster"})
    told.take()
    assert told.cluster.health() == {}


def test_addresses_as_they_are_stored() -> None:
    """From before the API checked them."""
    assert str(read_address("10.96.0.077")) == "10.96.0.77"
    assert str(read_address("FD00:10:96:0::0078")) == "fd00:10:96::78"
    assert str(read_address("::ffff:010.0.0.1")) == "10.0.0.1"
    told = made()
    told.service(clusterIP="10.96.0.010", clusterIPs=["10.96.0.010"])
    assert list(told.take()) == [NAME]
    told.service(clusterIP="10.96.0.300", clusterIPs=["10.96.0.300"])
    assert told.take() == {}
    assert "'10.96.0.300' can't be served" in told.refused()


def test_names_as_long_as_they_may_be() -> None:
    """63 characters each."""
    told = made()
    meta = {"namespace": "n" * 63, "name": "s" * 63}
    port = {"name": "p" * 15, "port": 80, "protocol": "TCP"}
    told.service(meta=meta, clusterIPs=["fd96:1111:2222:3333:4444:5555:6666:7777"], ports=[port])
    assert len(told.take()) == 1


def test_twenty_thousand_ports() -> None:
    """Are served."""
    told = made()
    told.service(ports=[{"name": f"p{n}", "port": n, "protocol": "TCP"} for n in range(1, 20001)])
    told.cluster.take(0.0)
    assert len(told.cluster.services()) == 20000


def test_table_sizes_follow_the_endpoints() -> None:
    """And don't change to and fro."""
    assert [table_size(n, 0) for n in (0, 1, 2, 3, 10, 11, 163, 164)] == [
        *(251, 251, 251, 509, 1021, 2039, 16381, 32749),
    ]
    assert table_size(3, 2039) == 2039
    assert table_size(1, 2039) == 251
    told = made()
    told.service()
    told.slice("a", *addresses(0, 11))
    assert told.take()[NAME].table_size == 2039
    told.slice("a", *addresses(0, 9))
    assert told.take()[NAME].table_size == 2039


def test_a_pod_with_the_nodes_network_and_a_node_port() -> None:
    """It is at the very address of the node port, and at another port of it."""
    told = made(outside=BOTH)
    told.service(type="NodePort", ports=[NODE_PORT])
    told.slice("a", ADDRESS)
    assert told.backends(f"{NODE_NAME}:all") == {ADDRESS: 8080}
    told.slice("a", ADDRESS, ports=ports(30080))
    assert told.backends(f"{NODE_NAME}:all") == {}, "nothing to translate"
    told.slice("a", endpoint(ADDRESS, nodeName="n2"))
    assert told.backends(f"{NODE_NAME}:all") == {}, "another node has not this one's address"
    told = made()
    told.service(type="NodePort", ports=[NODE_PORT])
    told.slice("a", ADDRESS)
    assert told.backends(f"{NODE_NAME}:node") == {ADDRESS: 8080}


def test_the_older_of_two_comes_first() -> None:
    """So that of two with one address the same is served on every node."""
    told = made()
    stamps = {"a": "2026-03-01T00:00:00Z", "b": "2026-01-01T00:00:00Z", "c": "2026-02-01T00:00:00Z"}
    for name, stamp in stamps.items():
        told.service(meta={"name": name, "creationTimestamp": stamp})
    changed = told.cluster.take(0.0)
    assert [each.name.split(":")[1] for each in changed.put] == ["b", "c", "a"]


def test_backends_that_stay_are_the_very_objects() -> None:
    """So whoever compares a service with that of before looks into those that are others."""
    told = made()
    told.service()
    told.slice("a", *addresses(0, 11))
    before = {each.address: each for each in told.take()[NAME].backends}
    told.slice("a", *addresses(1, 12))
    after = {each.address: each for each in told.take()[NAME].backends}
    assert len(before.keys() & after.keys()) == 10
    assert all(before[each] is after[each] for each in before.keys() & after.keys())
    told.slice("a", *addresses(1, 12), ports=ports(8081))
    moved = told.take()[NAME].backends
    assert {each.port for each in moved} == {8081}
