# SPDX-License-Identifier: Apache-2.0
"""What the agent sends is what the client gets."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.samples import service

from towpath.api.codec import build, plain, text
from towpath.api.documents import (
    BackendCounters,
    CgroupAncestor,
    CgroupProgram,
    CgroupRoot,
    Check,
    Counters,
    CpuCounters,
    CpuVerdicts,
    DeviceStatus,
    Doubtful,
    FileStatus,
    Flow,
    FlowCount,
    FlowCounts,
    Flows,
    Masquerade,
    MasqueradeCounters,
    MasqueradeDevice,
    MasqueradedFlow,
    MasqueradedFlows,
    MasqueradeRule,
    NextHop,
    NextHops,
    Plan,
    Refused,
    Route,
    ServiceChange,
    ServiceCounters,
    ServiceEntry,
    ServiceName,
    Socket,
    SocketBackend,
    SocketCounters,
    SocketFlow,
    SocketFlows,
    SocketHook,
    SocketProgram,
    SocketService,
    SocketStale,
    SocketTrace,
    Status,
    Trace,
    Unreached,
    UnreachedBackend,
    UnwrappedCounters,
    Use,
)
from towpath.capabilities import FILE
from towpath.core.health import State
from towpath.model import (
    Affinity,
    Backend,
    BackendState,
    CheckType,
    Device,
    Health,
    Problem,
    Protocol,
    Service,
)
from towpath.model.kinds import Ports
from towpath.model.parse import parse_service

NAME = ServiceName("web", ip_address("2001:db8::10"), 80, Protocol.UDP)
DOCUMENTS = [
    ServiceEntry(FILE, service("web", "2001:db8::10", "2001:db8::1")),
    Plan((ServiceChange("change", NAME, ("name",), (ip_address("192.0.2.1"),)),), 3, 0.25),
    Counters(
        {"tx": 2**63},
        (
            ServiceCounters(
                NAME,
                1,
                2,
                3,
                4,
                (BackendCounters(ip_address("192.0.2.1"), 5, 6, 7, 8, {"drop_mtu": 9}),),
                10,
                {"drop_no_backend": 11},
                (CpuCounters(12, 13, 14, 15, 16, {"drop_fib": 17}),),
            ),
        ),
        (CpuVerdicts(18, {"tx": 19}),),
        (Refused("br0", "EOPNOTSUPP", 20),),
        unwrapped=(UnwrappedCounters(ip_address("192.0.2.9"), 23, 24),),
    ),
    Flows((Flow("web", ip_address("2001:db8::7"), 40000, ip_address("192.0.2.1"), 0.5),), 20),
    FlowCounts(21, 22, (FlowCount("web", ip_address("192.0.2.1"), 21),)),
    Trace("a -> b tcp", "eth0", "tx", NAME, 1, flow_hit=False, backend=ip_address("192.0.2.1")),
    Trace("a -> b tcp", "eth0", "pass_no_vip"),
    NextHops(
        (
            NextHop(
                ip_address("192.0.2.1"),
                "eth0",
                "reachable",
                "02:00:00:00:00:11",
                "towpath",
                held=True,
                age=1.5,
                probes=0,
                destinations=(ip_address("10.0.0.1"), ip_address("2001:db8::1")),
            ),
        ),
        (Unreached(ip_address("10.0.0.2"), "no route", "no_route"),),
        managed=True,
        doubtful=(Doubtful(ip_address("10.0.0.3"), "two routes", "two_routes"),),
    ),
    UnreachedBackend(NAME, ip_address("10.0.0.2"), "no route", "no_route"),
    Masquerade(
        (MasqueradeRule(("veth*",), (ip_network("10.0.0.0/8"), ip_network("fd00::/64")), ()),),
        "61000-65535",
        "endpoint-dependent",
        through_stack=False,
        devices=(MasqueradeDevice("veth1", "pods", (0,), direct=True, ethernet=True),),
        sources=(ip_address("192.0.2.1"),),
        ports_in_use=(61000,),
        flows=1,
        capacity=8,
        counters=MasqueradeCounters({"from_pod": {"sent": 2}}, 3, {"from_pod": 4}),
        troubles=("x",),
    ),
    MasqueradedFlows(
        (
            MasqueradedFlow(
                "tcp",
                ip_address("10.0.0.2"),
                1,
                ip_address("192.0.2.1"),
                61000,
                ip_address("192.0.2.9"),
                80,
                "new",
                0.5,
            ),
        ),
        more=True,
    ),
    CgroupRoot(
        "/sys/fs/cgroup",
        4711,
        "configured",
        CgroupAncestor(2, 4711),
        fault=True,
        proven=False,
        proof="why",
        tried="now",
        programs=(CgroupProgram("connect4", "/sys/fs/cgroup", "multi", 1, "x", None, ("/p",)),),
    ),
    Socket(
        "/sys/fs/cgroup",
        "ECONNREFUSED",
        ("/sys/fs/cgroup/vm",),
        proven=False,
        proof="why",
        hooks=(
            SocketHook(
                "connect4",
                attached=True,
                programs=(SocketProgram("socket_connect4", 1, "/", ours=True),),
            ),
        ),
        counters=SocketCounters(
            {"connect": {"balanced": 1}},
            (
                SocketService(
                    "web",
                    {"connect": {"balanced": 1}},
                    (SocketBackend(ip_address("192.0.2.1"), 1, 0),),
                ),
            ),
        ),
        stale=SocketStale(1, 0, 2),
        troubles=("x",),
    ),
    SocketFlows(
        (
            SocketFlow(
                "udp",
                "dns",
                ip_address("192.0.2.10"),
                53,
                ip_address("192.0.2.1"),
                53,
                connected=True,
                local=ip_address("::"),
                local_port=40000,
                cookie=1 << 40,
                netns=4026531840,
            ),
        ),
        more=False,
    ),
    SocketTrace("balanced", "web", ip_address("192.0.2.1"), 80, "maglev", 1, 2, 3, "x"),
    Route(ip_address("10.0.0.1"), "eth0", "sent", "", "eth1", ip_address("192.0.2.1")),
    Check(
        NAME, ip_address("192.0.2.1"), CheckType.HTTP, State.RISING, "then", "why", "now", 1, 2, 3
    ),
    Status(
        version="1",
        pid=2,
        started="now",
        devices=(Device("eth0"),),
        file=FileStatus(Path("/f"), "then", "now", (Problem("bad", "x", "f", 1),)),
        services={"file": 1, "api": 2},
        limits={"services": Use(1, 2)},
        state=Path("/s"),
        pins=Path("/p"),
        metrics=None,
        resident_bytes=3,
        checks={"up": 2},
        device_status=(
            DeviceStatus("eth0", 2, called="lan0", mode="native"),
            DeviceStatus("eth1", trouble="device eth1 is missing: it is gone"),
            DeviceStatus("eth2", 3, mode="generic", fragments=False, why_generic="refused"),
        ),
    ),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_a_document_survives_the_way(document: Any) -> None:
    """Through JSON and back, with its types."""
    assert build(type(document), json.loads(json.dumps(plain(document)))) == document


def test_a_service_as_text_says_the_same() -> None:
    """Whatever its fields are."""
    usual = service("web")
    ports = Ports.of([(80, 80), (443, 445)])
    for each in (
        usual,
        replace(usual, vip=ip_network("203.0.113.0/28")),
        replace(usual, port=ports, health=Health(CheckType.TCP)),
        replace(
            usual,
            vip=ip_address("2001:db8::1"),
            protocol=Protocol.UDP,
            affinity=Affinity(60),
            allow_from=(ip_network("2001:db8::/32"),),
            backends=(
                Backend(ip_address("2001:db8::2"), 0, BackendState.DRAINING, 53, local=True),
            ),
        ),
    ):
        assert json.loads(text(each)) == plain(each)
        assert build(Service, json.loads(text(each))) == each


def test_what_a_newer_agent_added_is_ignored() -> None:
    """And what an older one lacks has its default."""
    assert build(Backend, {"address": "192.0.2.1", "colour": "red"}) == Backend(
        ip_address("192.0.2.1")
    )


@pytest.mark.parametrize("data", [None, [], "text", {"weight": 1}, {"address": "x"}])
def test_another_shape_is_an_error(data: object) -> None:
    """Never an object with holes."""
    with pytest.raises((TypeError, ValueError)):
        build(Backend, data)


def test_what_is_left_to_its_default_isnt_sent() -> None:
    """An agent that is older than its client refuses what it doesn't know."""
    usual = {
        "name": "web",
        "vip": "203.0.113.10",
        "port": 80,
        "backends": [{"address": "192.0.2.11"}, {"address": "192.0.2.12", "weight": 2}],
        "health": {"type": "tcp", "interval": 7},
    }
    made = parse_service(usual)
    sent = plain(made, defaults=False)
    assert sent.keys() == usual.keys()
    assert sent["backends"] == usual["backends"]
    assert sent["health"].keys() == {"type", "interval"}
    assert parse_service(json.loads(json.dumps(sent))) == made
    other = parse_service(usual | {"hash_by": "client", "scope": "all", "health": None})
    assert plain(other, defaults=False).keys() == {"name", "vip", "port", "backends", "hash_by"}
