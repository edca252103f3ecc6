# SPDX-License-Identifier: Apache-2.0
"""A real agent on a real device, and the ways to talk to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Any

import yaml

from towpath.api.client import Client, ClientError
from towpath.kernel.net.netns import in_netns
from towpath.kernel.net.offloads import ON, Offload
from towpath.lab.waiting import wait_until
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

TOWPATH = [sys.executable, "-m", "towpath"]
DEVICE, PEER = "tpagent0", "tpagent1"
BACKENDS = ("192.0.2.11", "192.0.2.12")
PINS = Path("/sys/fs/bpf/tpagent")

# What the configuration file of every test begins with. Small, so that it starts fast.
LIMITS = {
    "services": 64,
    "backends": 1024,
    "flows": 1024,
    "clients": 1024,
    "sources": 500,
    "table_slots": 200_000,
}
WEB = {
    "name": "web",
    "vip": "203.0.113.10",
    "port": 80,
    "table_size": 251,
    "backends": [{"address": "192.0.2.11", "weight": 2}, {"address": "192.0.2.12"}],
}
MAIL = {
    "name": "mail",
    "vip": "203.0.113.11",
    "port": 25,
    "table_size": 251,
    "backends": [{"address": "192.0.2.21"}, {"address": "192.0.2.22"}],
}

DNS = MAIL | {"name": "dns", "port": 53}


def ip(*arguments: str) -> None:
    """Run the ip command."""
    subprocess.run(["ip", *arguments], check=True)


@dataclass
class Agent:
    """An agent's files, its process, and a client of its API."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    namespace: str | None = None
    """The network namespace that it runs in; None: that of the test."""
    code: Path | None = None
    """The repository whose code it runs; None: this one."""
    wrap: Callable[[list[str]], list[str]] = list
    """Makes of its command one that runs it somewhere else."""

    def __post_init__(self) -> None:
        self.config = {
            "devices": [DEVICE],
            "limits": LIMITS,
            "api": {"socket": str(self.socket)},
            "state": {"directory": str(self.directory / "state"), "pins": str(PINS)},
            "services": [WEB],
        } | self.config
        self.write()

    @property
    def file(self) -> Path:
        """Its configuration file."""
        return self.directory / "towpath.yaml"

    @property
    def socket(self) -> Path:
        """Its API."""
        return self.directory / "agent.sock"

    @property
    def log(self) -> str:
        """What it has logged, of all its runs."""
        return (self.directory / "log").read_text()

    def write(self, **changes: Any) -> None:
        """Write the configuration file, with changes to it."""
        self.config |= changes
        self.file.write_text(yaml.safe_dump(self.config))

    def start(self, *options: str) -> None:
        """Start it and wait until it serves."""
        command = self.wrap([*TOWPATH, "agent", "--config", str(self.file), *options])
        with (self.directory / "log").open("ab") as log, self._inside():
            self.process = subprocess.Popen(command, stderr=log, env=self._environment())
        wait_until(self._serves, seconds=120, what="the agent to serve")

    def start_in_vain(self) -> str:
        """Start it and wait until it has given up; returns what it says."""
        command = [*TOWPATH, "agent", "--config", str(self.file)]
        with self._inside():
            ran = subprocess.run(
                command,
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        assert ran.returncode == 1, ran.stderr
        return ran.stderr

    def _inside(self) -> AbstractContextManager[None]:
        return nullcontext() if self.namespace is None else in_netns(self.namespace)

    def _environment(self) -> dict[str, str]:
        code = {} if self.code is None else {"PYTHONPATH": str(self.code / "src")}
        return os.environ | code

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            with Client(self.socket) as client:
                return client.status().pid == self.process.pid
        except ClientError:
            return False

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(120)

    def kill(self) -> None:
        """SIGKILL, as by the kernel's out-of-memory killer."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(120)

    def command(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        return subprocess.run(
            [*TOWPATH, *arguments],
            env=os.environ | {"TOWPATH_SOCKET": str(self.socket)},
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A request as any program may send it; bytes are sent as they are."""
        connection = HTTPConnection("localhost", timeout=120)
        connection.sock = socket(AF_UNIX)
        connection.sock.connect(str(self.socket))
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        try:
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@contextmanager
def device(known: Iterable[str] = BACKENDS) -> Iterator[None]:
    """A device to balance on, and the pins gone with it. ``known``: silent neighbours."""
    ip("link", "add", DEVICE, "type", "veth", "peer", "name", PEER)
    try:
        ip("address", "add", "192.0.2.1/24", "dev", DEVICE)
        ip("address", "add", "2001:db8:1::1/64", "dev", DEVICE, "nodad")
        # The machine itself has nothing to say to it: what comes in is what a test sends.
        ip("link", "set", PEER, "addrgenmode", "none")
        for name in (DEVICE, PEER):
            ip("link", "set", name, "up")
        for host in known:
            ip("neighbour", "add", host, "lladdr", "02:00:00:00:00:11", "dev", DEVICE)
        # What comes by XDP is taken by NAPI, which runs for GRO: without, the kernel would send it.
        Offload("rx-gro").write(PEER, ON)
        yield
    finally:
        shutil.rmtree(PINS, ignore_errors=True)
        ip("link", "delete", DEVICE)


@contextmanager
def running(
    directory: Path,
    *,
    code: Path | None = None,
    wrap: Callable[[list[str]], list[str]] = list,
    known: Iterable[str] = BACKENDS,
    **config: Any,
) -> Iterator[Agent]:
    """An agent that serves, killed at the end if the test has not ended it. ``known``: `device`."""
    agent = Agent(directory, config, code=code, wrap=wrap)
    with device(known):
        agent.start()
        try:
            yield agent
        finally:
            if agent.process is not None and agent.process.poll() is None:
                agent.kill()


def names(agent: Agent) -> set[str]:
    """The services in force."""
    with Client(agent.socket) as client:
        return {each.name for each in client.services()}


def put(agent: Agent, *services: dict[str, Any], prune: bool = False) -> None:
    """Apply services through the API."""
    with Client(agent.socket) as client:
        client.apply(map(parse_service, services), prune=prune)
