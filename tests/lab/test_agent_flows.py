# SPDX-License-Identifier: Apache-2.0
"""Translated flows beside others, as a running agent tells of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from tests.lab.harness_agent import DEVICE, MAIL, WEB, Agent, ip, put, running
from tests.lab.test_agent_observation import packet, send

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.api.documents import Flow

OURS = {4: "192.0.2.1", 6: "2001:db8:1::1"}
NAT = {
    "name": "nat",
    "vip": "203.0.113.20",
    "port": "80,8000-8099",
    "forwarding": "snat",
    "table_size": 251,
    "backends": ["192.0.2.11", "192.0.2.12"],
}
NAT6: dict[str, Any] = NAT | {
    "name": "nat6",
    "vip": "2001:db8:4::20",
    "port": 80,
    "backends": [{"address": "2001:db8:1::11", "port": 8080}],
}
FLOWS = {"web": 30, "nat": 40, "nat6": 20}
TRANSLATED = FLOWS["nat"] + FLOWS["nat6"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One that has been sent a packet of every flow."""
    with running(
        tmp_path_factory.mktemp("agent"),
        snat={"ipv4": [OURS[4]], "ipv6": [OURS[6]], "ports": "20000-29999"},
        services=[WEB, NAT, NAT6],
    ) as started:
        send(
            *(packet("198.51.100.7", WEB, sport=1000 + n) for n in range(FLOWS["web"])),
            *(
                packet("198.51.100.8", NAT, sport=1000 + n, dport=8000 + n)
                for n in range(FLOWS["nat"])
            ),
            *(packet("2001:db8:3::8", NAT6, sport=1000 + n) for n in range(FLOWS["nat6"])),
        )
        with Client(started.socket) as client:
            wait_until(
                lambda: client.count_flows().total == sum(FLOWS.values()),
                seconds=120,
                what="every flow to be known",
            )
        yield started


def flows(agent: Agent, **question: Any) -> list[Flow]:
    """What the agent lists."""
    with Client(agent.socket) as client:
        return list(client.flows(**question))


def keys(found: list[Flow]) -> set[tuple[str, str, int]]:
    """Service and client's end of each."""
    return {(each.service, str(each.client), each.client_port) for each in found}


def test_both_kinds_are_listed(agent: Agent) -> None:
    """Those that are translated with what the client has asked for and what the backend sees."""
    found = flows(agent)
    assert Counter(each.service for each in found) == FLOWS
    for each in found:
        if each.service == "web":
            assert each.translation is None
            continue
        made = each.translation
        assert made is not None
        version = each.client.version
        assert str(made.address) == OURS[version]
        assert 20000 <= made.port <= 29999
        asked = 7000 + each.client_port if version == 4 else 80
        assert (str(made.vip), made.vip_port) == ((NAT, NAT6)[version == 6]["vip"], asked)
        assert made.backend_port == (asked if version == 4 else 8080)
        assert made.state == "new"
        assert 0 < made.remaining_seconds < 63
    assert len(keys(found)) == sum(FLOWS.values())


def test_the_trace_says_the_same(agent: Agent) -> None:
    """Asked about the client's flow: backend, and our end of it."""
    each = flows(agent, service="nat")[0]
    assert each.translation is not None
    with Client(agent.socket) as client:
        traced = client.trace(
            f"{each.client}:{each.client_port} -> {NAT['vip']}:{each.translation.vip_port} tcp"
        )
    assert (traced.backend, traced.outer_source, traced.source_port) == (
        each.backend,
        each.translation.address,
        each.translation.port,
    )


def test_who_is_behind_what_a_backend_sees(agent: Agent) -> None:
    """Address and port lead to the client, an address to all that have it."""
    everything = flows(agent)
    for service in ("nat", "nat6"):
        one = next(each for each in everything if each.service == service)
        assert one.translation is not None
        ours = str(one.translation.address)
        end = f"{ours if one.client.version == 4 else f'[{ours}]'}:{one.translation.port}"
        found = flows(agent, translated=end, backend=one.backend)
        assert keys(found) == keys([one])
        assert len(flows(agent, translated=ours)) == FLOWS[service]
    assert flows(agent, translated="192.0.2.1:9") == []
    assert flows(agent, translated="192.0.2.1", service="web") == []


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"service": "nat"}, FLOWS["nat"]),
        ({"vip": "2001:db8:4::20"}, FLOWS["nat6"]),
        ({"client": "198.51.100.0/24"}, FLOWS["web"] + FLOWS["nat"]),
        ({"client": "2001:db8:3::8"}, FLOWS["nat6"]),
        ({"backend": "2001:db8:1::11"}, FLOWS["nat6"]),
        ({"max_idle": 600}, sum(FLOWS.values())),
        ({"expired": True}, sum(FLOWS.values())),
    ],
    ids=str,
)
def test_they_are_picked_and_counted_alike(
    agent: Agent, question: dict[str, Any], expected: int
) -> None:
    """By any of their parts."""
    found = flows(agent, **question)
    with Client(agent.socket) as client:
        counts = client.count_flows(**question)
    assert counts.total == len(found) == expected
    assert counts.translated == sum(each.translation is not None for each in found)
    assert (counts.limit, counts.nat_limit) == (1024, 262144)
    by_backend = Counter((each.service, each.backend) for each in found)
    assert {(each.service, each.backend): each.flows for each in counts.backends} == by_backend


@pytest.mark.parametrize("size", [1, 7, FLOWS["web"], 64])
def test_pages_go_on_from_one_table_to_the_other(agent: Agent, size: int) -> None:
    """Each flow is on one page, and no page but the last is shorter than asked."""
    found: list[Any] = []
    sizes: list[int] = []
    start: int | None = 0
    while start is not None:
        status, page = agent.request("GET", f"/v1/flows?limit={size}&start={start}")
        assert status == 200
        found += page["flows"]
        sizes.append(len(page["flows"]))
        start = page["following"]
    assert set(sizes[:-1]) <= {size}
    assert len({(f["service"], f["client_port"]) for f in found}) == len(found)
    assert len(found) == sum(FLOWS.values())
    for beyond in (1024 + 262144, 1 << 40):
        status, page = agent.request("GET", f"/v1/flows?start={beyond}")
        assert (status, page) == (200, {"flows": [], "following": None})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("10533", "'10533' is not an address; allowed: an address, or address and port"),
        ("192.0.2.1:70000", "70000 is out of range; allowed: an address, or address and port"),
        ("[2001:db8::1]", "is not ADDRESS:PORT; allowed: an address, or address and port"),
        ("192.0.2.0/24", "'192.0.2.0/24' is not an address"),
        ("224.0.0.1:80", "224.0.0.1 is a multicast address"),
    ],
)
def test_a_wrong_end_is_refused(agent: Agent, wrong: str, message: str) -> None:
    """With the field, and what is allowed."""
    for path in ("/v1/flows", "/v1/flows/count"):
        status, body = agent.request("GET", f"{path}?translated={wrong}")
        (problem,) = body["problems"]
        assert (status, problem["field"]) == (422, "translated")
        assert message in problem["message"]


def test_the_command_shows_translations(agent: Agent) -> None:
    """More columns where there are any, and the same fields for programs."""
    ran = agent.command("flows", "--service", "nat6", "--limit", "2")
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert lines[0] == [
        *("service", "client", "backend", "idle", "translated", "to", "state", "left")
    ]
    assert lines[2][0] == "nat6"
    assert lines[2][-4].startswith("[2001:db8:1::1]:2")
    assert "new" in lines[2]
    end = lines[2][-4]
    ran = agent.command("flows", "--translated", end, "--expired", "-o", "json")
    (one,) = json.loads(ran.stdout)
    assert one["client_port"] == int(lines[2][1].rpartition(":")[2])
    assert set(one["translation"]) == {
        *("address", "port", "vip", "vip_port", "backend_port", "state", "remaining_seconds")
    }
    ran = agent.command("flows", "--service", "web", "--limit", "1")
    assert "translated" not in ran.stdout
    ran = agent.command("flows", "--count")
    assert ran.stdout.splitlines()[-1].split() == [
        *("total", "room", "for", "1,024,", "and", "262,144", "translated", "90")
    ]
    ran = agent.command("flows", "--translated", "all")
    assert ran.returncode == 1
    assert "translated: 'all' is not an address; allowed: an address, or address" in ran.stderr


def test_metrics_and_counters_have_them(agent: Agent) -> None:
    """Active flows, by service and backend; and what came back."""
    one = flows(agent, service="nat")[0]
    assert one.translation is not None
    before = counted(agent, "nat")
    ip("neigh", "replace", "192.0.2.254", "lladdr", "02:00:00:00:00:fe", "dev", DEVICE)
    ip("route", "replace", "198.51.100.0/24", "via", "192.0.2.254", "dev", DEVICE)
    reply = TCP(sport=one.translation.vip_port, dport=one.translation.port, flags="SA")
    send(bytes(Ether() / IP(src=str(one.backend), dst=OURS[4]) / reply))
    wait_until(lambda: counted(agent, "nat").replies == before.replies + 1, seconds=120, what="it")
    with Client(agent.socket) as client:
        text = client.metrics()
    for name, active in FLOWS.items():
        service = counted(agent, name)
        assert service.active == sum(each.active or 0 for each in service.backends) == active
        (line,) = (
            each
            for each in text.splitlines()
            if each.startswith("towpath_service_active_flows{") and f'"{name}"' in each
        )
        assert float(line.split()[-1]) == active
    (line,) = (
        each
        for each in text.splitlines()
        if each.startswith("towpath_service_replies_total{") and '"nat"' in each
    )
    assert float(line.split()[-1]) == before.replies + 1


def counted(agent: Agent, name: str) -> Any:
    """A service's counters."""
    with Client(agent.socket) as client:
        return client.service_counters(name)


def test_a_change_of_forwarding_leaves_no_flows_of_before(agent: Agent) -> None:
    """They are in the other table, where no packet looks for them any more."""
    mail: dict[str, Any] = MAIL | {"name": "mail"}
    with Client(agent.socket) as client:
        client.add_service(**mail)
        send(*(packet("198.51.100.9", mail, sport=5000 + n) for n in range(5)))
        wait_until(lambda: client.count_flows(service="mail").total == 5, seconds=120, what="them")
        put(agent, mail | {"forwarding": "snat"})
        assert client.count_flows(service="mail").total == 0
        send(*(packet("198.51.100.9", mail, sport=6000 + n) for n in range(7)))
        wait_until(lambda: client.count_flows(service="mail").total == 7, seconds=120, what="them")
        assert client.count_flows(service="mail").translated == 7
        assert client.service_counters("mail").active == 7
        client.remove_service("mail")


def test_a_backend_gets_a_port_of_its_own(agent: Agent) -> None:
    """By command and API; what was there before stays where it is, and nonsense is refused."""
    web: dict[str, Any] = NAT | {"name": "own", "vip": "203.0.113.21", "port": 80}
    put(agent, web)

    def flow(sport: int) -> int:
        send(packet("198.51.100.9", web, sport=sport))
        with Client(agent.socket) as client:

            def found() -> list[int]:
                listed = client.flows(service="own")
                return [
                    each.translation.backend_port
                    for each in listed
                    if each.translation and each.client_port == sport
                ]

            wait_until(lambda: bool(found()), seconds=120, what="the flow")
            return found()[0]

    assert flow(7000) == 80
    for address in ("192.0.2.11", "192.0.2.12"):
        ran = agent.command("backend", "set", "own", address, "--port", "8080")
        assert (ran.returncode, ran.stderr) == (0, "")
    assert (flow(7001), flow(7000)) == (8080, 80)
    ran = agent.command("service", "get", "own")
    rows = [line.split()[:4] for line in ran.stdout.splitlines()]
    assert ["192.0.2.11", "1", "active", "8080"] in rows
    with Client(agent.socket) as client:
        plan = client.set_backend("own", "192.0.2.12", port=8081)
        assert [str(each) for each in plan.changes[0].backends_redirected] == ["192.0.2.12"]
        client.set_backend("own", "192.0.2.12", weight=3)
        assert [each.port for each in client.backends("own")] == [8080, 8081]
        client.set_backend("own", "192.0.2.12", port=0)
        assert [each.port for each in client.backends("own")] == [8080, None]
    ran = agent.command("service", "set", "own", "--forwarding", "dsr")
    assert ran.returncode == 1
    assert "forwarding dsr does not change ports" in ran.stderr
    ran = agent.command("backend", "set", "web", "192.0.2.11", "--port", "8080")
    assert ran.returncode == 1
    status, body = agent.request("PUT", "/v1/services/own/backends/192.0.2.11", {"port": 65536})
    assert (status, body["problems"][0]["field"]) == (422, "port")
    with Client(agent.socket) as client:
        assert client.service("own").forwarding == "snat"
        client.remove_service("own")
