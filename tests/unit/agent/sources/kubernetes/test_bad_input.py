# SPDX-License-Identifier: Apache-2.0
"""Objects that can't be served as they are: an Event and a line of the status each."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.samples import MemoryDatapath
from tests.unit.agent.sources.kubernetes.harness_followed import PORT, VIPS, outcome, piece, service

if TYPE_CHECKING:
    from pathlib import Path

OTHER = service("other", clusterIP="10.96.0.11", clusterIPs=["10.96.0.11"])
"""Beside what is bad it is served."""
CLUSTER = f"default:web:http:cluster:{VIPS[0]}"
LB: dict[str, Any] = {
    "type": "LoadBalancer",
    "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}},
}
LB_NAME = "default:web:http:lb:198.51.100.9:node"
FUTURE = {"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "Tunnel"}]}}


@pytest.mark.parametrize(
    ("found", "reason", "message", "served"),
    [
        # Values from the future, or of a kind that is none of its fields'.
        (service(type="Mesh"), "UnknownValue", "type: 'Mesh' isn't known", {CLUSTER}),
        (service(sessionAffinity="Cookie"), "UnknownValue", "taken for 'None'", {CLUSTER}),
        (service(internalTrafficPolicy="Near"), "UnknownValue", "taken for 'Cluster'", {CLUSTER}),
        (service(externalTrafficPolicy="Near"), "UnknownValue", "taken for 'Cluster'", {CLUSTER}),
        (service(**LB | {"status": FUTURE}), "UnknownValue", "ipMode: 'Tunnel'", {CLUSTER}),
        (
            service(ports=[PORT, PORT | {"name": "q", "protocol": "QUIC"}]),
            *("ProtocolNotSupported", "port 80/QUIC isn't served", {CLUSTER}),
        ),
        (service(ports=[{"port": "http"}]), "Unreadable", "$.spec.ports[0].port", set()),
        # From before validation.
        (
            service(clusterIP="10.96.0.010", clusterIPs=["10.96.0.010"]),
            *("AmbiguousAddress", "clusterIPs: '10.96.0.010' is taken for 10.96.0.10", {CLUSTER}),
        ),
        (
            service(externalIPs=["198.51.100.007"]),
            *("AmbiguousAddress", "externalIPs: '198.51.100.007' is taken for 198.51.100.7"),
            {CLUSTER, "default:web:http:external:198.51.100.7:node"},
        ),
        (
            service(clusterIP="10.96.0.300", clusterIPs=["10.96.0.300"]),
            *("InvalidAddress", "'10.96.0.300' can't be served", set()),
        ),
        (
            service(**LB, loadBalancerSourceRanges=["192.0.2.7/24"]),
            *("AmbiguousAddress", "'192.0.2.7/24' is taken for 192.0.2.0/24", {CLUSTER, LB_NAME}),
        ),
        (
            service(**LB, loadBalancerSourceRanges=[" 10.0.0.0/8 "]),
            *("AmbiguousAddress", "' 10.0.0.0/8 ' is taken for 10.0.0.0/8", {CLUSTER, LB_NAME}),
        ),
        (
            service(**LB, loadBalancerSourceRanges=["10.0.0.0/8", "10.0.0.0/33"]),
            *("InvalidSourceRange", "'10.0.0.0/33' lets nobody in", {CLUSTER, LB_NAME}),
        ),
    ],
)
def test_a_service(
    tmp_path: Path, found: dict[str, Any], reason: str, message: str, served: set[str]
) -> None:
    """What of it can be served is, and so are all others."""
    got = outcome(tmp_path, OTHER, found)
    assert got.served == served | {"default:other:http:cluster:10.96.0.11"}
    assert list(got.events) == [reason]
    assert message in got.events[reason]
    assert got.status[0].startswith("Service default/web: ")


@pytest.mark.parametrize(
    ("found", "reason", "message", "addresses"),
    [
        # Both families in one.
        (
            piece("10.244.0.1", "fd44::1"),
            *("InvalidAddress", "'fd44::1': it is none of IPv4", {"10.244.0.1"}),
        ),
        (piece("10.244.0.1", "nonsense"), "InvalidAddress", "'nonsense'", {"10.244.0.1"}),
        (
            piece("example.org", addressType="FQDN"),
            *("AddressTypeNotSupported", "web-1 isn't served: its addressType", set()),
        ),
        # Null lists.
        (piece("10.244.0.1", ports=None), "PortNotInSlice", "whose ports are: none", set()),
        (
            piece("10.244.0.1", ports=[{"name": "http", "port": None}]),
            *("PortNotInSlice", "has no number in EndpointSlice web-1", set()),
        ),
        (
            piece("10.244.0.1", ports=[{"name": "web", "port": 8080}]),
            *("PortNotInSlice", "ports match by name", set()),
        ),
    ],
)
def test_a_slice(
    tmp_path: Path, found: dict[str, Any], reason: str, message: str, addresses: set[str]
) -> None:
    """Its Service is served with what can be used of it."""
    got = outcome(tmp_path, OTHER, service(), found)
    assert got.served == {CLUSTER, "default:other:http:cluster:10.96.0.11"}
    assert got.backends == addresses
    assert list(got.events) == [reason]
    assert message in got.events[reason]


def test_what_is_null_or_unknown_is_nothing(tmp_path: Path) -> None:
    """Lists that are null, and fields that nobody knows yet: nothing is told of them."""
    lists: dict[str, Any] = dict.fromkeys(
        ("externalIPs", "loadBalancerSourceRanges", "ipFamilies", "selector")
    )
    alike = service(**lists, mesh={"mode": "ambient"}, status={"loadBalancer": {"ingress": None}})
    empty = service("empty", clusterIPs=None, clusterIP="10.96.0.12", ports=None)
    addresses = {"addresses": ["10.244.0.1"], "hints": {"forZones": None}, "rack": 7}
    listed = piece(endpoints=[addresses, {"addresses": None}])
    none = piece(name="empty", endpoints=None)
    got = outcome(tmp_path, alike, empty, listed, none)
    assert got == ({CLUSTER}, {"10.244.0.1"}, [], {})


def test_two_services_that_claim_one_address(tmp_path: Path) -> None:
    """The older one is served; the other one is told who has it."""
    made = {
        name: service(name, {"creationTimestamp": f"2026-01-0{day}T00:00:00Z"})
        for name, day in (("web", 2), ("first", 1))
    }
    got = outcome(tmp_path, *made.values())
    assert got.served == {f"default:first:http:cluster:{VIPS[0]}"}
    assert list(got.events) == ["AddressInUse"]
    assert got.status[0].startswith(f"Service default/web: {CLUSTER} isn't served: ")
    assert "default:first:http" in got.events["AddressInUse"]


def test_a_node_port_that_a_process_holds(tmp_path: Path) -> None:
    """It is served, and the process's loss is told."""
    with socket.create_server(("", 0)) as process:
        number = process.getsockname()[1]
        web = service(type="NodePort", ports=[PORT | {"nodePort": number}])
        got = outcome(tmp_path, web, look=True)
    assert got.served == {CLUSTER, "default:web:http:node:192.0.2.1:node"}
    assert list(got.events) == ["NodePortInUse"]
    assert f"nodePort {number}/tcp" in got.status[0]


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    """63 characters of each are served, and told of if something is wrong."""
    long = "s" * 63
    head = {"name": long, "namespace": "n" * 63}
    ports = [PORT | {"name": "p" * 15}, {"name": "tel", "port": 90, "protocol": "SCTP"}]
    got = outcome(tmp_path, service("web", head, ports=ports))
    assert got.served == {f"{'n' * 63}:{long}:{'p' * 15}:cluster:{VIPS[0]}"}
    assert got.status == [f"Service {'n' * 63}/{long}: {got.events['ProtocolNotSupported']}"]


def test_many_ports(tmp_path: Path) -> None:
    """More than are put into force at once; 20,000 are translated in core's tests."""
    ports = [{"name": f"p{each}", "port": each, "protocol": "TCP"} for each in range(1, 2001)]
    ports.append({"name": "tel", "port": 5060, "protocol": "SCTP"})
    got = outcome(tmp_path, service(ports=ports))
    assert len(got.served) == 2000
    assert list(got.events) == ["ProtocolNotSupported"]


def test_more_ports_than_there_is_room_for(tmp_path: Path) -> None:
    """Each that isn't served is told, as far as there is a line for it, and why."""
    ports = [{"name": f"p{each}", "port": each, "protocol": "TCP"} for each in range(1, 51)]
    got = outcome(tmp_path, service(ports=ports), datapath=MemoryDatapath(room=40))
    assert len(got.served) == 40
    assert set(got.events) == {"NoRoom"}
    assert len(got.status) == 10
    assert all("limits don't grow: there is no memory" in each for each in got.status)
