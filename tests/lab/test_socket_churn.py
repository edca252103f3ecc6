# SPDX-License-Identifier: Apache-2.0
"""Connections to a service while its backends come and go and its agent is killed: none fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.lab.harness_agent import PINS, Agent
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, PORT, VIP

from towpath.datapath.host import detach_pinned
from towpath.datapath.socket.balancer import detach
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KILLS = int(os.environ.get("TOWPATH_KILLS") or examples(6, 2))
CONNECTIONS = 5_000 * KILLS
SECONDS = 1800

# Accepts, and resets what was accepted: no port has to wait.
_SERVE = """
import socket, select, sys
servers = [socket.create_server((each, int(sys.argv[1])), backlog=4096) for each in sys.argv[2:]]
poll = select.epoll()
known = {each.fileno(): each for each in servers}
for fd in known:
    poll.register(fd, select.EPOLLIN)
print(flush=True)
while True:
    for fd, _ in poll.poll():
        known[fd].accept()[0].close()
"""

_CONNECT = """
import collections, json, select, socket, struct, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
address = (sys.argv[2], int(sys.argv[3]))
came, reset = collections.Counter(), struct.pack("ii", 1, 0)
while came.total() < int(sys.argv[4]) or not select.select([sys.stdin], [], [], 0)[0]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        try:
            made.connect(address)
            came["connected"] += 1
        except OSError as error:
            came[str(error)] += 1
print(json.dumps(came))
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, in a namespace with servers."""
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
    with new_netns(), new_cgroup() as path:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        command = [sys.executable, "-c", _SERVE, str(PORT), *BACKENDS]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"\n"
            yield path
            server.kill()


def with_backends(*addresses: str) -> list[dict[str, Any]]:
    """The service, with these."""
    backends = [{"address": each} for each in addresses]
    web = {"name": "web", "vip": VIP, "port": PORT, "table_size": 251, "backends": backends}
    return [web]


@pytest.mark.thorough
def test_no_connection_fails(cgroup: Path, tmp_path: Path) -> None:
    """Of all that are made while the agent is killed again and again."""
    agent = Agent(
        tmp_path, {"socket": {"cgroup": str(cgroup)}, "services": with_backends(*BACKENDS[:3])}
    )
    del agent.config["devices"]
    agent.write()
    agent.start()
    command = [sys.executable, "-c", _CONNECT, str(cgroup), VIP, str(PORT), str(CONNECTIONS)]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        for turn in range(KILLS):
            agent.write(services=with_backends(*BACKENDS[turn % 3 : turn % 3 + 3]))
            agent.kill()
            agent.start()
        told, _ = client.communicate(timeout=SECONDS)
    agent.end()
    detach(PINS / "socket")
    detach_pinned(PINS)
    came = json.loads(told)
    assert came.keys() == {"connected"}
    assert came["connected"] >= CONNECTIONS
