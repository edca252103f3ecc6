# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""From the released version to this one while clients go on: no packet is lost, nothing forgotten.

The released version's code is in the repository's history: see ``harness_released.py``. What was
measured is printed with ``pytest -rP``.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from tests.lab import harness_lan as lan
from tests.lab import harness_upgrade as upgrade
from tests.lab.harness_agent import DEVICE, LIMITS, PEER, PINS, WEB, Agent, ip, names, put, running
from tests.lab.harness_released import SCHEMA, released
from tests.lab.harness_stream import passing, streaming
from tests.lab.harness_upgrade import BY_API, BY_FILE, QUIET, SECONDS, SERVICES

from towpath.agent.lb.store import DATABASE, SCHEMA_VERSION
from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.harness_requests import Answers

    from towpath.documents import Counters

ACTIVE, DRAINED, SICK = lan.BACKENDS
REMOVED = ("dsr-6", "snat-6")
"""Services out of which DRAINED is taken altogether. It keeps its flows."""
DATAGRAMS = 50
REQUESTS = 300
SMALL = {"flows": 1 << 16, "nat_flows": 1 << 15}
LARGE = {"flows": 1 << 17, "nat_flows": 1 << 16}
WAYS = ("stopped", "killed", "enlarged")
"""How an agent of the released version ends: by SIGTERM, by SIGKILL, by that and other limits."""


def upgraded(agent: Agent, way: str) -> None:
    """End an agent of the released version; go on with one of this."""
    if way == "stopped":
        assert agent.end() == 0
    else:
        agent.kill()
    assert schema(agent) == SCHEMA
    if way == "enlarged":
        agent.write(limits=LIMITS | LARGE)
    agent.code = None
    agent.start()
    assert schema(agent) == SCHEMA_VERSION
    # Structs have changed since.
    assert "to new tables" in agent.log


def schema(agent: Agent) -> int:
    """Of its state database."""
    with closing(sqlite3.connect(agent.directory / "state" / DATABASE)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


# ---- Every single packet -------------------------------------------------------------------------


def reweigh(agent: Agent, *weights: int) -> None:
    """Have other backends get new flows: only what is remembered keeps a flow where it is."""
    backends = [
        {"address": f"192.0.2.{number}", "weight": weight}
        for number, weight in enumerate(weights, 11)
    ]
    agent.write(services=[WEB | {"backends": backends}])
    if agent.process is not None:
        with Client(agent.socket) as client:
            wait_until(
                lambda: [each.weight for each in client.backends("web")] == list(weights),
                seconds=SECONDS,
                what="the weights",
            )


@pytest.mark.parametrize("way", WAYS[1:])
def test_no_packet_is_lost(way: str, tmp_path: Path) -> None:
    """Each that is sent arrives once, and those of a flow that is known at its backend."""
    with running(tmp_path, code=released(), limits=LIMITS | SMALL) as agent:
        reweigh(agent, 1, 1, 1)
        for number in (11, 12, 13):
            mac = f"02:00:00:00:00:{number}"
            ip("neighbour", "replace", f"192.0.2.{number}", "lladdr", mac, "dev", DEVICE)
        with passing(PEER), streaming(PEER, str(WEB["vip"])) as stream:
            reweigh(agent, 0, 9, 1)
            upgraded(agent, way)
            reweigh(agent, 9, 0, 1)
            seen = stream.report()
    print(seen)
    assert (seen["lost"], seen["twice"], seen["moved"]) == (0, 0, {})
    assert seen["sent"] > 1000


# ---- Everything that an agent keeps --------------------------------------------------------------


@pytest.fixture(scope="module")
def link() -> Iterator[None]:
    """Shared by the tests."""
    with upgrade.link():
        yield


@pytest.fixture
def agent(link: None, tmp_path: Path) -> Iterator[Agent]:
    """One of the released version, not started yet."""
    del link
    with upgrade.agent(tmp_path, released(), limits=LIMITS | SMALL) as agent:
        yield agent


def take_out(agent: Agent, client: Client) -> None:
    """Drain or remove a backend of every service, by the file and by the API."""
    drained = {str(lan.own(DRAINED, 4)): {"state": "draining"}}
    changed = [
        each | {"backends": [b | drained.get(b["address"], {}) for b in each["backends"]]}
        for each in BY_FILE
    ]
    agent.write(services=[*changed, QUIET])
    for each in BY_API:
        address = lan.own(DRAINED, 6)
        if each["name"] in REMOVED:
            client.remove_backend(each["name"], address)
        else:
            client.set_backend(each["name"], address, state="draining")


def expected(name: str) -> dict[str, tuple[str, bool]]:
    """The states of a service's backends after that, with one that does not listen."""
    _, version = SERVICES[name]
    states = {
        ACTIVE: ("active", False),
        DRAINED: ("draining", name in REMOVED),
        SICK: ("quarantined", False),
    }
    return {str(lan.own(backend, version)): state for backend, state in states.items()}


EXPECTED = {name: expected(name) for name in SERVICES}


def in_force(client: Client) -> dict[str, dict[str, tuple[str, bool]]]:
    """The state of each backend of each web service, and whether it is terminating."""
    return {
        name: {str(b.address): (str(b.state), b.leaving) for b in client.backend_status(name)}
        for name in SERVICES
    }


def ends(client: Client) -> dict[str, list[str]]:
    """When the removed backends go at the latest."""
    return {name: [b.until for b in client.backend_status(name) if b.until] for name in REMOVED}


def assert_gone_on(before: Counters, after: Counters) -> None:
    """No counter has begun anew, and nothing was dropped."""
    assert all(after.verdicts[name] >= count for name, count in before.verdicts.items())
    assert not {name: n for name, n in after.verdicts.items() if n and name.startswith("drop")}
    for each in before.services:
        now = after.service(each.service.name)
        assert (now.packets, now.bytes) >= (each.packets, each.bytes)
        for backend in each.backends:
            assert now.backend(backend.address).packets >= backend.packets
    assert after.service("quiet") == before.service("quiet")
    assert after.service("quiet").packets == DATAGRAMS


def assert_answered(answers: Answers, since: float) -> None:
    """Every request, and those of new flows by the backend that gets them since then."""
    print(f"{answers.total} requests, {answers.kept} of them over connections that stayed")
    assert answers.failures == []
    assert answers.kept > answers.new > 0
    # A client's port that is used again may be that of a flow that is remembered.
    new = {(each.vip, each.port): each for each in reversed(answers.connections)}
    assert {each.backend for each in new.values() if each.begun > since} == {ACTIVE}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_forgotten(agent: Agent, way: str) -> None:
    """Connections, services of the API, drained, removed and sick backends, counters."""
    agent.start()
    put(agent, *BY_API)
    with ExitStack() as undo, Client(agent.socket) as client:
        for name in (ACTIVE, DRAINED):
            undo.enter_context(upgrade.listening(name))
        with upgrade.listening(SICK):
            up = {"up": len(lan.BACKENDS) * len(SERVICES)}
            wait_until(lambda: client.status().checks == up, seconds=SECONDS, what="checks")
            clients = undo.enter_context(upgrade.requests())
            kept = upgrade.keep(undo)
            upgrade.send_datagrams(DATAGRAMS)
        take_out(agent, client)
        wait_until(lambda: in_force(client) == EXPECTED, seconds=SECONDS, what="states")
        taken_out = time.monotonic()
        before, owners, until = client.counters(), client.status().services, ends(client)

        upgraded(agent, way)

        assert in_force(client) == EXPECTED
        assert ends(client) == until
        assert_gone_on(before, client.counters())
        assert client.status().services == owners == {"file": len(BY_FILE) + 1, "api": len(BY_API)}
        assert [each.ask() for each in kept] == [each.backend for each in kept]
        upgrade.wait_for_requests(REQUESTS)
        assert [each.ask() for each in kept] == [each.backend for each in kept]
        assert in_force(client) == EXPECTED
        assert_answered(clients.end(), taken_out)
        assert_gone_on(before, client.counters())


def pinned() -> dict[str, int]:
    """What is pinned, by inode: whoever pins anew makes another."""
    return {str(path): path.lstat().st_ino for path in PINS.rglob("*")}


def test_the_way_back_is_refused(agent: Agent) -> None:
    """The released version says who has written the state; what is in the kernel goes on."""
    old, agent.code = agent.code, None
    agent.start()
    put(agent, *BY_API)
    with ExitStack() as undo:
        clients = undo.enter_context(upgrade.requests())
        kept = upgrade.keep(undo)
        agent.kill()
        before, agent.code = pinned(), old
        said = agent.start_in_vain()
        assert "state.db: written by a newer Towpath (schema 4, this one knows up to 3)" in said
        assert "start that one, or move the file away to begin anew" in said
        assert pinned() == before
        upgrade.wait_for_requests(REQUESTS)
        assert [each.ask() for each in kept] == [each.backend for each in kept]
        agent.code = None
        agent.start()
        assert [each.ask() for each in kept] == [each.backend for each in kept]
        answers = clients.end()
    assert answers.failures == []
    assert names(agent) == {*SERVICES, "quiet"}
