# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""Agents that are killed, and whose next one finds another file: packets notice nothing.

What was measured is printed with ``pytest -rP``.
"""

from __future__ import annotations

import random
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.lab.harness_agent import (
    DEVICE,
    DNS,
    LIMITS,
    MAIL,
    PEER,
    PINS,
    TOWPATH,
    WEB,
    Agent,
    ip,
    names,
    put,
    running,
)
from tests.lab.harness_stream import passing, streaming
from tests.prog.lb.harness import pin_directories

from towpath.api.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKENDS = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
SIZES = (1 << 16, 1 << 17, 1 << 15)
KILLS = examples(4, 1)


def web(*weights: int) -> dict[str, Any]:
    """The service with these weights of its backends."""
    backends = [
        {"address": address, "weight": weight}
        for address, weight in zip(BACKENDS, weights, strict=True)
    ]
    return WEB | {"backends": backends}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent whose backends' neighbours are known, and the wire that streams need."""
    limits = LIMITS | {"flows": SIZES[0]}
    with running(tmp_path, limits=limits, services=[web(1, 1, 1)]) as started:
        for number, address in enumerate(BACKENDS):
            mac = f"02:00:00:00:00:{number:02x}"
            ip("neighbour", "replace", address, "lladdr", mac, "dev", DEVICE)
        with passing(PEER):
            yield started


def test_another_file_after_a_kill(agent: Agent) -> None:
    """Limits, services and weights that changed while nobody was there; the API's are kept."""
    put(agent, MAIL)
    with Client(agent.socket) as client:
        before = client.trace("198.51.100.7:40000 -> 203.0.113.10:80").backend
    agent.kill()
    agent.write(limits=LIMITS | {"flows": SIZES[1], "services": 99}, services=[web(1, 1, 1), DNS])
    agent.start()
    with Client(agent.socket) as client:
        assert client.status().limits["services"].limit == 99
        assert client.count_flows().limit == SIZES[1]
        assert client.trace("198.51.100.7:40000 -> 203.0.113.10:80").backend == before
    assert names(agent) == {"web", "mail", "dns"}
    assert pin_directories(PINS) == ["links", "maps"]


def test_limits_that_are_too_small_now_keep_the_agent_from_starting(agent: Agent) -> None:
    """It says which to raise; the load balancer goes on, and so does the next agent."""
    put(agent, MAIL)
    with streaming(PEER, str(WEB["vip"])) as stream:
        agent.kill()
        agent.write(limits=LIMITS | {"flows": SIZES[1], "backends": 4})
        said = agent.start_in_vain()
        assert "backends: 5 needed, 4 at most; raise limits.backends and restart" in said
        assert pin_directories(PINS) == ["links", "maps"]
        agent.write(limits=LIMITS | {"flows": SIZES[0]})
        agent.start()
        seen = stream.report()
    assert (seen["lost"], seen["twice"], seen["moved"]) == (0, 0, {})


def seconds_to_start(agent: Agent) -> float:
    """Start the agent; returns how long that took."""
    begun = time.perf_counter()
    agent.start()
    return time.perf_counter() - begun


def test_killed_at_any_moment_of_a_start(agent: Agent) -> None:
    """With another size of the flow table each time, and other weights: no flow notices."""
    moments = random.Random(7)  # noqa: S311 - when, not what
    agent.kill()
    taken = seconds_to_start(agent)
    with streaming(PEER, str(WEB["vip"])) as stream:
        for kill in range(KILLS):
            agent.kill()
            limits = LIMITS | {"flows": SIZES[(kill + 1) % len(SIZES)]}
            agent.write(limits=limits, services=[web(*((0, 9, 1) if kill % 2 else (9, 0, 1)))])
            command = [*TOWPATH, "agent", "--config", str(agent.file)]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as starting:
                # Not while modules are imported, the first half: nothing is changed by then.
                time.sleep(taken * moments.uniform(0.5, 1.1))
                starting.kill()
            taken = seconds_to_start(agent)
            print(f"kill {kill}: serves after {taken:.2f} s")
            assert pin_directories(PINS) == ["links", "maps"]
        seen = stream.report()
    print(seen)
    assert (seen["lost"], seen["twice"], seen["moved"]) == (0, 0, {})
    assert seen["sent"] > 1000
