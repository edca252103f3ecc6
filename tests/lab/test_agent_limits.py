# SPDX-License-Identifier: Apache-2.0
"""An agent that is asked for too much, or lacks something: it goes on."""

from __future__ import annotations

import json
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from tests.lab.harness_agent import MAIL, WEB, Agent, names, running

from towpath.api.client import Client
from towpath.lab.waiting import wait_until
from towpath.model.problems import MAX_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 19465
CHECKED = WEB | {"health": {"type": "tcp", "interval": "100ms", "timeout": "100ms"}}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent of its own, that checks two backends that aren't there."""
    metrics = {"listen": f"127.0.0.1:{PORT}"}
    with running(tmp_path, services=[CHECKED], metrics=metrics) as agent:
        yield agent


def pid(agent: Agent) -> int:
    """Its process."""
    assert agent.process is not None
    return agent.process.pid


def checks(agent: Agent) -> int:
    """How many checks have been made."""
    with Client(agent.socket) as client:
        return sum(each.passed + each.failed + each.unmade for each in client.checks())


def test_a_huge_request_holds_nobody_up(agent: Agent) -> None:
    """Nor is its answer huge. Requests are answered and backends checked meanwhile."""
    one = {"vip": "203.0.113.50", "port": "1-65535", "backends": [f"192.0.2.{n}" for n in range(9)]}
    many = {"services": [{"name": f"s{n}"} | one for n in range(40_000)]}
    seen = set()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(agent.request, "POST", "/v1/apply", json.dumps(many).encode())
        while not asked.done():
            seen.add(checks(agent))
    status, answer = asked.result()
    assert status == 422
    assert len(answer["problems"]) == MAX_PROBLEMS + 1
    assert len(seen) > 3
    assert names(agent) == {"web"}


def test_more_than_a_request_may_hold_is_refused(agent: Agent) -> None:
    """Saying so, though the client is not done yet."""
    status, answer = agent.request("POST", "/v1/apply", b" " * (1 << 24) + b"{}")
    assert status == 413
    assert "the body is too large; allowed: 16777216 bytes" in answer["problems"][0]["message"]
    status, _ = agent.request("POST", "/v1/captures", b" " * (1 << 17))
    assert status == 413


def threads(agent: Agent) -> int:
    """How many it has."""
    return len(list(Path(f"/proc/{pid(agent)}/task").iterdir()))


@pytest.mark.parametrize("where", ["api", "metrics"])
def test_connections_without_a_request_keep_nobody_out(agent: Agent, where: str) -> None:
    """However many; none of them is a thread."""
    before = threads(agent)
    with ExitStack() as stack:
        for _ in range(200):
            address: Any = str(agent.socket) if where == "api" else ("127.0.0.1", PORT)
            family = socket.AF_UNIX if where == "api" else socket.AF_INET
            client = stack.enter_context(socket.socket(family))
            client.connect(address)
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        if where == "api":
            assert checks(agent) >= 0
        else:
            with urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=60) as answer:
                assert b"towpath_agent_info" in answer.read()
        assert threads(agent) <= before + 8


def set_files(agent: Agent, soft: int) -> int:
    """How many files it may have open; returns how many before."""
    before, hard = resource.prlimit(pid(agent), resource.RLIMIT_NOFILE)
    resource.prlimit(pid(agent), resource.RLIMIT_NOFILE, (soft, hard))
    return before


@pytest.mark.parametrize("how", ["changed", "SIGHUP"])
def test_without_open_files_a_reload_is_made_later(agent: Agent, how: str) -> None:
    """The error is told once, in a few lines; the file is followed afterwards as before."""
    number = set_files(agent, 3)
    if how == "SIGHUP":
        assert agent.process
        agent.process.send_signal(signal.SIGHUP)
    else:
        agent.write(services=[CHECKED, MAIL])
    told = "configuration file: tried again"
    wait_until(lambda: told in agent.log, seconds=120, what="the reload to fail")
    set_files(agent, number)
    if how == "SIGHUP":
        wait_until(lambda: agent.log.count("in force") > 1, seconds=120, what="the reload")
    else:
        wait_until(lambda: names(agent) == {"web", "mail"}, seconds=120, what="the reload")
    agent.write(services=[CHECKED])
    wait_until(lambda: names(agent) == {"web"}, seconds=120, what="the next reload")
    with Client(agent.socket) as client:
        wait_until(lambda: client.status().trouble is None, seconds=120, what="no trouble")
    assert agent.log.count("Traceback") < 5
