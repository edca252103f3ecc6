# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""How large the agent is. How fast: ``towpath bench control``.

What was measured is printed with ``pytest -rP``.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.lab.harness_agent import Agent, put, running

from towpath.api.client import Client
from towpath.api.codec import plain
from towpath.lab.waiting import wait_until
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


def test_a_thousand_services_fit(agent: Agent) -> None:
    """120 MiB hold them, set through the API."""
    put(agent, prune=True)
    services = [service(number) for number in range(SERVICES)]
    with Client(agent.socket) as client:
        plan = client.apply(services)
        assert len(plan.changes) == SERVICES
        client.metrics()
    print(f"{SERVICES} services x {BACKENDS} backends: {resident(agent):.0f} MiB")
    assert resident(agent) < 120


def test_a_file_of_a_thousand_services_fits(agent: Agent) -> None:
    """Nor does it make the agent large, read once or again."""
    put(agent, prune=True)
    assert Limits().services > SERVICES
    for count in (SERVICES, SERVICES - 1):
        config = agent.config | {"services": plain([service(n) for n in range(count)])}
        agent.file.write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
        with Client(agent.socket) as client:
            wait_until(
                lambda: client.status().services["file"] == count,  # noqa: B023
                seconds=120,
                what="the file",
            )
        print(f"file of {count}: {resident(agent):.0f} MiB")
        assert resident(agent) < 120
    agent.write(services=[])
