# SPDX-License-Identifier: Apache-2.0
"""What a running agent tells of real packets: counters, flows, metrics."""

from __future__ import annotations

import json
import os
from contextlib import closing
from socket import AF_PACKET, SOCK_RAW, socket
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tests.lab.harness_agent import MAIL, PEER, WEB, Agent, running

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = MAIL | {"name": "empty", "port": 26, "backends": []}
SIX = WEB | {"name": "six", "vip": "2001:db8:4::10", "backends": ["2001:db8:1::11"]}
MANY = WEB | {"name": "many", "vip": "203.0.113.12", "port": "8000-8099", "protocol": "udp"}
FLOWS = {"web": 40, "six": 20, "many": 30}
NOTHING = 5
LENGTH = {4: 20, 6: 40}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One that has been sent two packets of every flow, and some that it drops."""
    services = [WEB, EMPTY, SIX, MANY]
    with running(tmp_path_factory.mktemp("agent"), services=services) as started:
        send(
            *(packet("198.51.100.7", WEB, sport=1000 + n) for n in range(FLOWS["web"])),
            *(packet("2001:db8:3::7", SIX, sport=1000 + n) for n in range(FLOWS["six"])),
            *(packet(f"198.51.100.{n}", MANY, dport=8050) for n in range(FLOWS["many"])),
            times=2,
        )
        send(*(packet("198.51.100.7", EMPTY, sport=1000 + n) for n in range(NOTHING)))
        expected = 2 * sum(FLOWS.values()) + NOTHING
        with Client(started.socket) as client:
            wait_until(
                lambda: sum(each.packets for each in client.counters().services) == expected,
                seconds=120,
                what="every packet to be counted",
            )
        yield started


def packet(source: str, service: dict[str, Any], *, sport: int = 40000, dport: int = 0) -> bytes:
    """The plainest packet to a service."""
    network = IPv6 if ":" in source else IP
    transport = UDP if service.get("protocol") == "udp" else TCP
    ports = transport(sport=sport, dport=dport or service["port"])
    return bytes(Ether() / network(src=source, dst=service["vip"]) / ports)


def send(*frames: bytes, times: int = 1) -> None:
    """Put frames on the wire that ends at the load balancer's device."""
    with closing(socket(AF_PACKET, SOCK_RAW)) as wire:
        wire.bind((PEER, 0))
        for frame in frames * times:
            wire.send(frame)


def by_name(services: Any) -> dict[str, Any]:
    """Counters by the name of their service."""
    return {each.service.name: each for each in services}


def test_counters_of_services(agent: Agent) -> None:
    """Packets, new flows, active ones, and drops with their reason."""
    with Client(agent.socket) as client:
        counted = by_name(client.counters().services)
    for name, flows in FLOWS.items():
        each = counted[name]
        assert (each.packets, each.flows, each.active) == (2 * flows, flows, flows)
        assert (each.drops, each.dropped) == (0, {})
    nothing = counted["empty"]
    assert (nothing.packets, nothing.flows, nothing.active) == (NOTHING, NOTHING, 0)
    assert (nothing.drops, nothing.dropped) == (NOTHING, {"drop_no_backend": NOTHING})


def test_counters_of_backends(agent: Agent) -> None:
    """Their sums are the service's."""
    with Client(agent.socket) as client:
        for name, flows in FLOWS.items():
            counted = client.service_counters(name)
            for field in ("packets", "bytes", "flows", "active"):
                found = [getattr(each, field) for each in counted.backends]
                assert sum(found) == getattr(counted, field)
            assert all(each.active == each.flows for each in counted.backends)
            assert sum(each.flows for each in counted.backends) == flows
            assert counted.cpus == ()


def test_counters_by_cpu(agent: Agent) -> None:
    """One entry for each possible CPU; what they add up to is the whole."""
    with Client(agent.socket) as client:
        counted = client.service_counters("web", per_cpu=True)
        every = client.counters(per_cpu=True)
    assert [each.cpu for each in counted.cpus] == list(range(len(every.cpus)))
    assert len(counted.cpus) >= len(os.sched_getaffinity(0))
    for field in ("packets", "bytes", "flows", "drops"):
        assert sum(getattr(each, field) for each in counted.cpus) == getattr(counted, field)
    for at, backend in enumerate(counted.backends):
        of_cpus = [each.backends[at] for each in counted.cpus]
        assert {each.address for each in of_cpus} == {backend.address}
        assert sum(each.packets for each in of_cpus) == backend.packets
        assert {each.active for each in of_cpus} == {None}
    for verdict, packets in every.verdicts.items():
        assert sum(each.verdicts[verdict] for each in every.cpus) == packets


def test_flows_are_listed(agent: Agent) -> None:
    """Each with client, service and the backend that a trace says it has."""
    with Client(agent.socket) as client:
        found = list(client.flows())
        assert len(found) == sum(FLOWS.values())
        assert {
            (each.client_port, str(each.client)) for each in found if each.service == "web"
        } == {(1000 + n, "198.51.100.7") for n in range(FLOWS["web"])}
        assert {each.idle_seconds < 120 for each in found} == {True}
        for each in found:
            vip, port = {
                "web": ("203.0.113.10", 80),
                "six": ("[2001:db8:4::10]", 80),
                "many": ("203.0.113.12", 8050),
            }[each.service]
            source = f"[{each.client}]" if each.client.version == 6 else str(each.client)
            protocol = "udp" if each.service == "many" else "tcp"
            traced = client.trace(f"{source}:{each.client_port} -> {vip}:{port} {protocol}")
            assert (traced.flow_hit, traced.backend) == (True, each.backend)


@pytest.mark.parametrize(
    ("question", "services"),
    [
        ({"service": "web"}, {"web"}),
        ({"service": "empty"}, set()),
        ({"vip": "2001:db8:4::10"}, {"six"}),
        ({"vip": "203.0.113.99"}, set()),
        ({"client": "198.51.100.7", "service": "web"}, {"web"}),
        ({"client": "198.51.100.0/24"}, {"web", "many"}),
        ({"client": "2001:db8:3::/64"}, {"six"}),
        ({"backend": "2001:db8:1::11"}, {"six"}),
        ({"max_idle": 600}, {"web", "six", "many"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_flows_are_picked(agent: Agent, question: dict[str, Any], services: set[str]) -> None:
    """By any of their parts; listed and counted alike."""
    with Client(agent.socket) as client:
        found = list(client.flows(**question))
        assert {each.service for each in found} == services
        counts = client.count_flows(**question)
    assert counts.total == len(found) == sum(FLOWS[name] for name in services)
    assert counts.limit == 1024
    for each in counts.backends:
        mine = [f for f in found if (f.service, f.backend) == (each.service, each.backend)]
        assert each.flows == len(mine) > 0


def test_flows_come_in_pages(agent: Agent) -> None:
    """No more than asked for, and where to go on."""
    status, first = agent.request("GET", "/v1/flows?limit=64")
    assert (status, len(first["flows"])) == (200, 64)
    status, rest = agent.request("GET", f"/v1/flows?limit=64&start={first['following']}")
    assert (status, rest["following"]) == (200, None)
    assert len(rest["flows"]) == sum(FLOWS.values()) - 64
    keys = [(f["service"], f["client"], f["client_port"]) for f in first["flows"] + rest["flows"]]
    assert len(set(keys)) == sum(FLOWS.values())
    with Client(agent.socket) as client:
        assert len(list(client.flows(limit=70))) == 70


@pytest.mark.parametrize(
    ("query", "status", "field", "message"),
    [
        ("client=198.51.100.7/24", 422, "client", "host bits set"),
        ("client=all", 422, "client", "allowed: an address, or a prefix"),
        ("vip=224.0.0.1", 422, "vip", "multicast"),
        ("backend=203.0.113.0/24", 422, "backend", "allowed: a unicast"),
        ("limit=0", 422, "limit", "greater than or equal to 1"),
        ("limit=10001", 422, "limit", "less than or equal to 10000"),
        ("max_idle=-1", 422, "max_idle", "greater than or equal to 0"),
        ("service=none", 404, "", "no service 'none'"),
    ],
)
def test_a_wrong_question_is_refused(
    agent: Agent, query: str, status: int, field: str, message: str
) -> None:
    """With the field and what is allowed."""
    got, body = agent.request("GET", f"/v1/flows?{query}")
    assert got == status, body
    (problem,) = body["problems"]
    assert message in problem["message"]
    assert field in (problem["field"] or "")


def test_metrics_have_flows_and_reasons(agent: Agent) -> None:
    """As Prometheus reads them."""
    with Client(agent.socket) as client:
        text = client.metrics()
    samples = {
        (sample.name, sample.labels.get("service"), sample.labels.get("reason")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "backend" not in sample.labels
    }
    for name, flows in FLOWS.items():
        assert samples["towpath_service_active_flows", name, None] == flows
        assert samples["towpath_service_flows_total", name, None] == flows
    dropped = "towpath_service_dropped_packets_total"
    assert {key: value for key, value in samples.items() if key[0] == dropped} == {
        (dropped, "empty", "drop_no_backend"): NOTHING
    }


def test_the_command_lists_flows(agent: Agent) -> None:
    """A table for people, and all of it for programs."""
    ran = agent.command("flows", "--service", "six", "--limit", "3")
    assert ran.returncode == 0
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert lines[0] == ["service", "client", "backend", "idle"]
    assert len(lines) == 5
    assert lines[2][:3] == ["six", lines[2][1], "2001:db8:1::11"]
    assert lines[2][1].startswith("[2001:db8:3::7]:10")
    assert "more than 3" in ran.stderr
    ran = agent.command("flows", "--limit", "0", "-o", "json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(json.loads(ran.stdout)) == sum(FLOWS.values())
    ran = agent.command("flows", "--client", "198.51.100.0/24", "--count", "-o", "json")
    assert json.loads(ran.stdout)["total"] == FLOWS["web"] + FLOWS["many"]
    ran = agent.command("flows", "--count")
    assert ran.stdout.splitlines()[-1].split() == ["total", "room", "for", "1,024", "90"]


def test_the_command_shows_counters(agent: Agent) -> None:
    """With reasons, and by CPU when asked."""
    ran = agent.command("service", "counters", "empty", "--per-cpu")
    assert ran.returncode == 0
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["drop_no_backend", str(NOTHING)] in lines
    assert ["empty", str(NOTHING), str(NOTHING * LENGTH[4] * 2), "5", "0", "5"] in lines
    assert sum(int(line[1]) for line in lines if line[:1] and line[0].isdigit()) == NOTHING
    ran = agent.command("status", "--counters", "--per-cpu")
    assert "CPU 0" in ran.stdout
    assert "active" in ran.stdout


def test_dropped_packets_of_a_backend_have_their_reason(agent: Agent) -> None:
    """On the way to which backend, also in the metrics; forgotten with the backend."""
    lost: dict[str, Any] = WEB | {
        "name": "lost",
        "vip": "203.0.113.13",
        "backends": ["10.255.255.1"],
    }
    with Client(agent.socket) as client:
        client.add_service(**lost)
        send(*(packet("198.51.100.7", lost, sport=2000 + n) for n in range(7)))
        wait_until(
            lambda: client.service_counters("lost").packets == 7,
            seconds=120,
            what="the packets to be counted",
        )
        counted = client.service_counters("lost")
        assert counted.dropped == {"drop_no_route": 7}
        (backend,) = counted.backends
        assert (backend.packets, backend.flows, backend.dropped) == (0, 7, {"drop_no_route": 7})
        assert (
            'towpath_backend_dropped_packets_total{backend="10.255.255.1",port="80",'
            'protocol="tcp",reason="drop_no_route",service="lost",vip="203.0.113.13"} 7.0'
        ) in client.metrics()
        client.remove_service("lost")
        client.add_service(**lost)
        (again,) = client.service_counters("lost").backends
        assert (again.packets, again.flows, again.dropped) == (0, 0, {})
        client.remove_service("lost")
