# SPDX-License-Identifier: Apache-2.0
"""A link with services of every forwarding, and an agent of either version between its hosts.

Each service has a VIP of its own and the same three web servers. The IPv4 services are in the
agent's file, the IPv6 services are set through its API.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import harness_lan as lan
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_requests import Answers

from towpath.datapath.decap.decap import Decap
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces, network, web
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model import Address

BALANCER = lan.BALANCERS[0]
FORWARDINGS = ("dsr", "l2", "snat")
SERVICES = {f"{name}-{version}": (name, version) for name in FORWARDINGS for version in (4, 6)}
FIRST_VIP = 0x70  # the host's number on the link
WEB_PORT, HEALTH_PORT, QUIET_PORT = 80, 8080, 9
# Some processes of a web server run as a user that may not look into tmp_path.
WEB = Path("/run/tpn-web")
PAUSE = "0.05"
SECONDS = 120.0


def vip(name: str) -> Address:
    """Of a service."""
    forwarding, version = SERVICES[name]
    number = FIRST_VIP + FORWARDINGS.index(forwarding)
    return ip_address(lan.on_link(number, version).partition("/")[0])


def service(name: str) -> dict[str, Any]:
    """A service of web servers. A backend that does not listen says so to a check at once."""
    forwarding, version = SERVICES[name]
    return {
        "name": name,
        "vip": str(vip(name)),
        "port": WEB_PORT,
        "forwarding": forwarding,
        "table_size": 251,
        "health": {"type": "tcp", "port": HEALTH_PORT, "interval": "300ms", "timeout": "10s"},
        "backends": [{"address": str(lan.own(each, version))} for each in lan.BACKENDS],
    }


BY_FILE = [service(name) for name, (_, version) in SERVICES.items() if version == 4]
BY_API = [service(name) for name, (_, version) in SERVICES.items() if version == 6]
QUIET = {
    "name": "quiet",
    "vip": str(vip("dsr-4")),
    "port": QUIET_PORT,
    "protocol": "udp",
    "table_size": 251,
    "backends": [str(lan.own(each, 4)) for each in lan.BACKENDS],
}
"""For datagrams that are counted; nobody takes them."""


@contextmanager
def link() -> Iterator[None]:
    """The link, with web servers on its backends, which unwrap what comes in tunnels."""
    with lan.lan([vip(name) for name in SERVICES]), ExitStack() as undo:
        for name in lan.BACKENDS:
            # Behind source NAT what a backend answers is rewritten, too: see the lab's network.
            network.switch_off(name, lan.DEVICE, *network.SENDERS_OFFLOADS)
            undo.callback(namespaces.stop_processes, name)
            web.start(name, name, WEB / name)
            with in_netns(name):
                addresses = [lan.own(name, version) for version in (4, 6)]
                undo.enter_context(Decap(lan.DEVICE, addresses))
        yield


@contextmanager
def agent(directory: Path, code: Path | None, limits: dict[str, int]) -> Iterator[Agent]:
    """An agent that is not started yet; in the end nothing is left of it."""
    config = {
        "devices": [lan.DEVICE],
        "limits": limits,
        "snat": {f"ipv{version}": [str(lan.own(BALANCER, version))] for version in (4, 6)},
        "services": [*BY_FILE, QUIET],
    }
    made = Agent(directory, config, namespace=BALANCER, code=code)
    try:
        yield made
    finally:
        if made.process is not None:
            made.kill()
        remove_pins(PINS)


@contextmanager
def listening(name: str) -> Iterator[None]:
    """A backend whose health checks pass."""
    done = threading.Event()
    with in_netns(name):
        every = ("::", HEALTH_PORT)
        server = socket.create_server(every, family=socket.AF_INET6, dualstack_ipv6=True)

    def take() -> None:
        while not done.is_set():
            connection, _ = server.accept()
            connection.close()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        done.set()
        with in_netns(name):
            last = socket.create_connection(("::1", HEALTH_PORT))
        last.close()
        thread.join()
        server.close()


class Requests:
    """Clients that ask all services without a pause, a process of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> Answers:
        """End them; returns what came back."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=SECONDS)
        return Answers.parse(said)


@contextmanager
def requests() -> Iterator[Requests]:
    """Clients while the block runs."""
    program = Path(__file__).with_name("harness_requests.py")
    command = [sys.executable, str(program), PAUSE, *(str(vip(name)) for name in SERVICES)]
    process = namespaces.spawn(lan.CLIENT, command, stdout=subprocess.PIPE)
    try:
        yield Requests(process)
    finally:
        process.kill()
        process.communicate()


class Kept:
    """A connection to a service that stays."""

    def __init__(self, name: str) -> None:
        with in_netns(lan.CLIENT):
            self._connection = HTTPConnection(str(vip(name)), WEB_PORT, timeout=SECONDS)
            self._connection.connect()
        self.backend = self.ask()

    def ask(self) -> str:
        """Who answers."""
        self._connection.request("GET", "/")
        return self._connection.getresponse().read().decode()

    def close(self) -> None:
        """End it."""
        self._connection.close()


def keep(undo: ExitStack) -> list[Kept]:
    """Connections of each service to each of its backends, closed in the end."""
    found = []
    for name in SERVICES:
        backends: set[str] = set()
        while backends < set(lan.BACKENDS):
            found.append(undo.enter_context(closing(Kept(name))))
            backends.add(found[-1].backend)
    return found


def send_datagrams(count: int) -> None:
    """To the service that nothing else is sent to."""
    with in_netns(lan.CLIENT):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(count):
            sender.sendto(b"datagram", (str(QUIET["vip"]), QUIET_PORT))


def wait_for_requests(count: int) -> None:
    """Wait until so many more have been answered."""
    before = _served()
    wait_until(lambda: _served() >= before + count, seconds=SECONDS, what="requests")


def _served() -> int:
    logs = (WEB / name / "access.log" for name in lan.BACKENDS)
    return sum(log.read_bytes().count(b"\n") for log in logs)
