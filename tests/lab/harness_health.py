# SPDX-License-Identifier: Apache-2.0
"""An agent in the lab that checks its backends, and ways to break them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from towpath.api.client import Client, ClientError
from towpath.lab.agent import WEB4, WEB6, configuration, service
from towpath.lab.topology import BALANCER, CLIENT, VIP4
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.api.documents import Check
    from towpath.lab import Lab

FAST = {"type": "http", "interval": "300ms", "timeout": "1s", "rise": 2, "fall": 2}
SECONDS = 120.0


def shell(where: str, command: str) -> str:
    """What a command in a namespace says."""
    full = ["ip", "netns", "exec", where, "sh", "-c", command]
    return subprocess.run(full, check=True, capture_output=True, text=True).stdout


class Checking:
    """An agent whose services check their backends."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.file = lab.directory / "health.yaml"
        self.socket = lab.directory / "agent.sock"
        self.process: subprocess.Popen[str] | None = None
        self.runs = 0

    def write(self, health: object = FAST, **changes: Any) -> None:
        """Write the file: both services of the lab with this check."""
        services = [
            service(self.lab.topology, name) | {"health": health, "table_size": 251} | changes
            for name in (WEB4, WEB6)
        ]
        config = configuration(self.lab) | {"services": services}
        partial = self.file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(config))
        partial.rename(self.file)

    def start(self) -> None:
        """Start the agent, and wait until it serves."""
        self.runs += 1
        command = [sys.executable, "-m", "towpath", "agent", "--config", str(self.file)]
        self.process = self.lab.spawn(BALANCER, command, log_to=f"health-{self.runs}.log")
        wait_until(self._serves, seconds=SECONDS, what="the agent to serve")

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            with Client(self.socket) as client:
                return client.status().pid == self.process.pid
        except ClientError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(SECONDS)

    def end(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(SECONDS) == 0, self.log

    @property
    def log(self) -> str:
        """What this run has logged."""
        return (self.lab.directory / f"health-{self.runs}.log").read_text()

    def checks(self, name: str) -> dict[str, Check]:
        """How the backends of a service are, by their names."""
        with Client(self.socket) as client:
            found = {each.backend: each for each in client.checks(name)}
        names = {}
        for link in self.lab.topology.backend_links:
            for address in (link.node4[0].ip, link.node6[0].ip):
                if address in found:
                    names[link.port] = found[address]
        return names

    def states(self, name: str) -> dict[str, str]:
        """Their states."""
        return {backend: str(check.state) for backend, check in self.checks(name).items()}

    def wait(self, name: str, **states: str) -> None:
        """Wait until backends are in these states."""
        wait_until(
            lambda: self.states(name).items() >= states.items(),
            seconds=SECONDS,
            what=f"{states} of {name}; it is {self.states(name)}",
        )

    def command(self, *arguments: str) -> str:
        """What a towpath command says."""
        done = subprocess.run(
            [sys.executable, "-m", "towpath", *arguments, "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@contextmanager
def without_vip(lab: Lab, *numbers: int) -> Iterator[None]:
    """Backends (from 0) that don't have the IPv4 VIP, so that they don't answer for it."""
    nodes = [lab.topology.backend_links[number].node for number in numbers]
    for node in nodes:
        shell(node, f"ip address del {VIP4}/32 dev lo")
    try:
        yield
    finally:
        for node in nodes:
            shell(node, f"ip address add {VIP4}/32 dev lo")


def answers(count: int, seconds: int = 10) -> dict[str, int]:
    """How many of so many requests of a client each backend has answered; "" for none."""
    loop = f"for i in $(seq {count}); do curl -s -m {seconds} http://{VIP4}/ || true; echo; done"
    said = shell(CLIENT, loop).split("\n")[:-1]
    return {name: said.count(name) for name in set(said)}
