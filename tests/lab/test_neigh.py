# SPDX-License-Identifier: Apache-2.0
"""Next hops of a running agent: kept by it, and by the kernel when it is gone."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.lab.harness_agent import DEVICE, MAIL, WEB, Agent, device, ip, put, running

from towpath.api.client import Client
from towpath.datapath.neigh.keeper import PROTOCOL
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.neighbours import EXTERN_LEARN, MANAGED, Key, Neighbour, neighbours
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.documents import NextHop

SIX = WEB | {"name": "six", "vip": "2001:db8:4::10", "backends": ["2001:db8:1::11"]}
LOST = MAIL | {"name": "lost", "port": 26, "backends": ["198.51.100.77"]}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """One with backends of both families on its link, and one that there is no route to."""
    with running(tmp_path, known=(), services=[WEB, SIX, LOST]) as started:
        yield started


def entry(address: str) -> Neighbour | None:
    """What the kernel has for an address on the agent's device."""
    key = Key(device_index(DEVICE), ip_address(address))
    return next((each for each in neighbours() if each.key == key), None)


def ours(address: str) -> bool:
    """Whether there is an entry that an agent has made."""
    found = entry(address)
    return (
        found is not None
        and found.protocol == PROTOCOL
        and bool(found.flags & EXTERN_LEARN and found.extended & MANAGED)
    )


def hops(agent: Agent) -> dict[str, NextHop]:
    """The agent's next hops by address."""
    with Client(agent.socket) as client:
        return {str(each.address): each for each in client.next_hops().next_hops}


def wait(until: object) -> None:
    """Wait for something of the agent's to become so."""
    assert callable(until)
    wait_until(until, seconds=120, what="next hops to be so")


def test_backends_are_next_hops_of_the_agent(agent: Agent) -> None:
    """Of whatever family, and what can't be reached is told with the reason."""
    wait(lambda: all(map(ours, ("192.0.2.11", "192.0.2.12", "2001:db8:1::11"))))
    wait(lambda: {each.owner for each in hops(agent).values()} == {"towpath"})
    found = hops(agent)
    assert found.keys() == {"192.0.2.11", "192.0.2.12", "2001:db8:1::11"}
    one = found["192.0.2.11"]
    assert (one.device, one.owner, one.mac) == (DEVICE, "towpath", None)
    assert one.destinations == (ip_address("192.0.2.11"),)
    with Client(agent.socket) as client:
        unreached = {str(each.address): each.reason for each in client.next_hops().unreached}
    assert unreached.pop("198.51.100.77") == "no_route"
    assert set(unreached.values()) <= {"no_answer"}


def test_each_backend_says_why_it_is_not_reached(agent: Agent) -> None:
    """In status, beside the backend, in the metrics and by the doctor. Others are unaffected."""
    silent = "its next hop doesn't answer: {} on " + DEVICE

    def unreached() -> dict[str, str]:
        with Client(agent.socket) as client:
            return {str(each.backend): each.reason for each in client.unreached()}

    reachable = "2001:db8:1::11"
    ip(*f"neigh replace {reachable} dev {DEVICE} lladdr 02:00:00:00:00:11 nud permanent".split())
    wait(lambda: len(unreached()) == 3 and reachable not in unreached())
    with Client(agent.socket) as client:
        assert client.status().unreached == {"no_route": 1, "no_answer": 2}
        (lost,) = client.backend_status("lost")
        one, _ = client.backend_status("web")
        (six,) = client.backend_status("six")
        text = client.metrics()
    assert (lost.trouble, one.trouble, six.trouble) == (
        "no route",
        silent.format(one.address),
        None,
    )
    found = {each.name: each.samples for each in text_string_to_metric_families(text)}
    reached = {each.labels["backend"]: each.value for each in found["towpath_backend_reached"]}
    assert {each: not value for each, value in reached.items() if not value} == dict.fromkeys(
        unreached(), True
    )
    assert reached[reachable] == 1
    shown = agent.command("status").stdout
    assert "backends: 1 no_route, 2 no_answer" in shown or "2 no_answer, 1 no_route" in shown
    assert "no route" in agent.command("backend", "list", "lost").stdout
    assert silent.format("192.0.2.11") in agent.command("service", "get", "web").stdout
    told = agent.command("doctor", "--config", str(agent.file), "-o", "json").stdout
    ways = next(each for each in json.loads(told) if each["name"] == "ways to backends")
    assert (ways["state"], ways["required"]) == ("missing", False)
    assert "198.51.100.77: no route" in ways["found"]
    assert reachable not in ways["found"]


def test_the_command_shows_what_the_api_has(agent: Agent) -> None:
    """As a table, and for a program."""
    wait(lambda: {each.owner for each in hops(agent).values()} == {"towpath"})
    shown = agent.command("neigh", "list")
    assert shown.returncode == 0, shown.stderr
    assert "192.0.2.11" in shown.stdout
    assert "towpath" in shown.stdout
    assert "198.51.100.77: no route" in shown.stdout
    found = json.loads(agent.command("neigh", "list", "-o", "json").stdout)
    assert {each["address"] for each in found["next_hops"]} == hops(agent).keys()
    assert found["managed"] is True
    assert "3 next hops, 3 of them not resolved" in agent.command("status").stdout


def test_metrics_count_next_hops(agent: Agent) -> None:
    """By state, and what has none."""
    with Client(agent.socket) as client:
        wait(lambda: len(client.next_hops().unreached) == 4)
        text = client.metrics()
    found = {each.name: each.samples for each in text_string_to_metric_families(text)}
    assert sum(each.value for each in found["towpath_next_hops"]) == len(hops(agent))
    assert [each.value for each in found["towpath_destinations_unreached"]] == [4]


def test_backends_that_come_and_go_are_followed(agent: Agent) -> None:
    """By the API."""
    wait(lambda: ours("192.0.2.11"))
    put(agent, MAIL)
    wait(lambda: ours("192.0.2.21") and ours("192.0.2.22"))
    assert agent.command("service", "delete", "mail").returncode == 0
    wait(lambda: entry("192.0.2.21") is None)
    assert ours("192.0.2.11")


def test_the_kernel_goes_on_without_the_agent(agent: Agent) -> None:
    """The next one takes over what is wanted, and removes the rest."""
    wait(lambda: ours("192.0.2.11") and ours("192.0.2.12"))
    agent.kill()
    assert ours("192.0.2.11")
    agent.write(services=[WEB | {"backends": ["192.0.2.12", "192.0.2.13"]}])
    agent.start()
    wait(lambda: ours("192.0.2.13") and entry("192.0.2.11") is None)
    assert ours("192.0.2.12")


def test_detaching_removes_all_entries(tmp_path: Path) -> None:
    """And nobody else's."""
    with device(known=()):
        agent = Agent(tmp_path)
        agent.start("--detach-on-exit")
        wait(lambda: ours("192.0.2.11"))
        assert agent.end() == 0
        assert entry("192.0.2.11") is None


def test_an_agent_without_devices_removes_what_the_last_one_made(agent: Agent) -> None:
    """It has nothing to send."""
    wait(lambda: ours("192.0.2.11"))
    agent.end()
    for key in ("devices", "limits", "services"):
        del agent.config[key]
    agent.write()
    agent.start()
    wait(lambda: entry("192.0.2.11") is None)


def test_a_route_is_told_beside_the_kernels(agent: Agent) -> None:
    """Nobody answers for the backend, so that packets are handed to the kernel."""
    found = json.loads(agent.command("route", "get", "192.0.2.11", "-o", "json").stdout)
    assert found["datapath"]["device"] == found["ip"]["dev"] == DEVICE
    assert found["datapath"]["next_hop"] == "192.0.2.11"
    assert found["datapath"]["verdict"] in {"handoff", "drop_no_forwarding"}
    shown = agent.command("route", "get", "198.51.100.77").stdout
    assert "datapath: drop_no_route" in shown
    wrong = agent.command("route", "get", "192.0.2.11", "--device", "eth99")
    assert wrong.returncode == 1
    assert "no such device: eth99" in wrong.stderr
