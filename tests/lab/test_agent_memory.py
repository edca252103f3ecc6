# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""An agent with many services and little memory. What was measured is printed with -rP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import yaml
from tests.lab.harness_agent import Agent, running
from tests.lab.harness_memory import limited

from towpath import NotFoundError
from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SERVICES, BACKENDS = 5000, 3
AT_ONCE = 16
PORT = 19467
MEGABYTE = 1_000_000
LIMITS = {
    "services": SERVICES + 1,
    "backends": SERVICES * BACKENDS + 100,
    "flows": 4096,
    "clients": 1024,
    "sources": 500,
    "nat_flows": 1024,
    "table_slots": (SERVICES + 100) * 251,
}


def service(number: int) -> dict[str, Any]:
    """One of thousands, with a small table."""
    first = IPv4Address("198.18.0.0") + number * 4
    return {
        "name": f"s{number}",
        "vip": str(IPv4Address("203.0.112.0") + number // 1000),
        "port": 1000 + number % 1000,
        "table_size": 251,
        "backends": [{"address": str(first + each)} for each in range(BACKENDS)],
    }


def write(agent: Agent, first: int) -> None:
    """Have its file name so many services, from that one on."""
    many = [service(first + number) for number in range(SERVICES)]
    agent.file.write_text(yaml.dump(agent.config | {"services": many}, Dumper=yaml.CSafeDumper))


def scrape(_: int) -> int:
    """Read all metrics; returns how many bytes."""
    with urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=300) as answer:
        return len(answer.read())


def reload(agent: Agent, first: int) -> None:
    """Have services that are others by one, and wait for them."""
    write(agent, first)
    name = f"s{first + SERVICES - 1}"
    wait_until(lambda: has(agent, name), seconds=300, what=name)


def has(agent: Agent, name: str) -> bool:
    """Whether it has a service of the file."""
    with suppress(NotFoundError), Client(agent.socket) as client:
        return client.service(name).name == name
    return False


def test_scrapes_and_reloads_fit_into_150_megabytes(tmp_path: Path) -> None:
    """Nothing that runs there is killed, and all is answered.

    The tables are not among it: how large they are is a question of limits and of CPUs.
    """
    metrics = {"listen": f"127.0.0.1:{PORT}"}
    many = [service(number) for number in range(SERVICES)]
    given: dict[str, Any] = {"limits": LIMITS, "metrics": metrics, "services": many}
    with limited(150 * MEGABYTE) as memory, running(tmp_path, **given) as agent:
        assert agent.end() == 0
        agent.wrap = memory.wrap
        agent.start()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            scrapes = pool.map(scrape, range(2 * AT_ONCE))
            for first in (1, 2):
                reload(agent, first)
            sizes = set(scrapes)
        assert min(sizes) > 10 * MEGABYTE
        assert memory.kills == 0
        print(f"{SERVICES} services x {BACKENDS} backends, at most {memory.peak} bytes")
        agent.kill()
