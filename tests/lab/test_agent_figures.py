# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""The agent's figures: how fast, how large. Bounds leave room for a busy machine.

What was measured is printed with ``pytest -rP``.
"""

from __future__ import annotations

import statistics
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.lab.harness_agent import Agent, put, running

from towpath.api.client import Client
from towpath.api.codec import plain
from towpath.model import Backend, Limits, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICES, BACKENDS = 1000, 10
MEBIBYTE = 1 << 20


def service(number: int) -> Service:
    """One of a thousand, with a table of the default 16381 slots."""
    first = int(IPv4Address("198.18.0.0")) + number * 16
    return Service(
        name=f"s{number}",
        vip=IPv4Address("203.0.113.10"),
        port=1000 + number,
        backends=tuple(Backend(IPv4Address(first + i)) for i in range(1, BACKENDS + 1)),
    )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with room for them all."""
    limits = {"table_slots": 20_000_000}
    with running(tmp_path_factory.mktemp("agent"), limits=limits, services=[]) as started:
        yield started


def resident(agent: Agent) -> float:
    """MiB that the agent has in RAM now."""
    with Client(agent.socket) as client:
        return client.status().resident_bytes / MEBIBYTE


def test_a_backend_change_takes_milliseconds(agent: Agent) -> None:
    """5 ms on an idle machine, from the call until it is on disk, in the kernel and answered."""
    put(agent, plain(service(0)), prune=True)
    times = []
    with Client(agent.socket) as client:
        for round_ in range(50):
            begun = time.perf_counter()
            client.set_backend("s0", service(0).backends[0].address, 1 + round_ % 2)
            times.append(1000 * (time.perf_counter() - begun))
    print(f"backend change: p50 {statistics.median(times):.2f} ms, min {min(times):.2f} ms")
    assert min(times) < 5
    assert statistics.median(times) < 15


def test_a_thousand_services_take_seconds(agent: Agent) -> None:
    """5 s from nothing, through the API; and 120 MiB hold them."""
    put(agent, prune=True)
    services = [service(number) for number in range(SERVICES)]
    with Client(agent.socket) as client:
        begun = time.perf_counter()
        plan = client.apply(services)
        taken = time.perf_counter() - begun
        assert len(plan.changes) == SERVICES
        client.metrics()
    print(f"{SERVICES} services x {BACKENDS} backends: {taken:.2f} s, {resident(agent):.0f} MiB")
    assert taken < 5
    assert resident(agent) < 120


def test_a_file_of_a_thousand_services_does_not_hold_up_the_api(agent: Agent) -> None:
    """Nor does it make the agent large, read once or again."""
    put(agent, prune=True)
    assert Limits().services > SERVICES
    for count in (SERVICES, SERVICES - 1):
        config = agent.config | {"services": plain([service(n) for n in range(count)])}
        agent.file.write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
        slowest = _slowest_answer_until(agent, count)
        print(f"file of {count}: slowest answer {slowest:.3f} s, {resident(agent):.0f} MiB")
        assert slowest < 0.5
        assert resident(agent) < 120
    agent.write(services=[])


def _slowest_answer_until(agent: Agent, count: int) -> float:
    """Ask for the health until so many services are in force; the longest wait."""
    slowest, deadline = 0.0, time.monotonic() + 30
    with Client(agent.socket) as client:
        while client.status().services["file"] != count:
            assert time.monotonic() < deadline
            begun = time.perf_counter()
            client.health()
            slowest = max(slowest, time.perf_counter() - begun)
    return slowest
