# SPDX-License-Identifier: Apache-2.0
"""Source NAT with real clients and backends that have neither VIP nor decapsulation."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_address
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer, UDPServer
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_health import FAST

from towpath import LoadBalancer
from towpath.client import Client, ClientError
from towpath.kernel.netns import in_netns
from towpath.lab import Lab, network
from towpath.lab.topology import BALANCER, CLIENT, DEVICE, ROUTER, VIP4, VIP6
from towpath.lab.waiting import wait_until
from towpath.model import Limits, Snat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.model import Address

PORT, CLOSED, OTHER = 7000, 7001, 80
TIMEOUT = 10.0
VIPS: dict[int, Address] = {4: VIP4, 6: VIP6}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
BACKENDS = 3
DOWNLOAD = UPLOAD = 300_000
NARROW = 1300  # MTU of a link or way, of which only one node knows
LOCKED = ["mtu", "lock", str(NARROW)]
REQUESTS = 40
SMALL_DATAGRAM = 100
LIMITS = {"services": 16, "backends": 64, "flows": 1024, "table_slots": 65536}


class _TcpServer(ThreadingTCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128
    name = ""


class _UdpServer(UDPServer):
    address_family = socket.AF_INET6
    name = ""


class _Talk(StreamRequestHandler):
    """To each line: who answers whom, and as many bytes as the line asks for."""

    server: _TcpServer

    def _lines(self) -> Iterator[bytes]:
        with suppress(ConnectionResetError):  # as health checks end
            yield from self.rfile

    def handle(self) -> None:
        for line in self._lines():
            said = {"name": self.server.name, "peer": plain(self.client_address[0])}
            self.wfile.write(json.dumps(said).encode() + b"\n" + b"x" * int(line))


class _Echo(BaseRequestHandler):
    """The same to a small datagram; a large one comes back."""

    server: _UdpServer

    def handle(self) -> None:
        data, answering = self.request
        said = {"name": self.server.name, "peer": plain(self.client_address[0])}
        answer = data if len(data) > SMALL_DATAGRAM else json.dumps(said).encode()
        answering.sendto(answer, self.client_address)


def plain(address: str) -> str:
    """An address without the mark of one family within the other."""
    return address.removeprefix("::ffff:")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three backends that know nothing of VIPs."""
    with Lab.up(BACKENDS) as lab, ExitStack() as undo:
        for link in lab.topology.backend_links:
            for vip, length in ((VIP4, 32), (VIP6, 128)):
                command = ["ip", "-n", link.node, "address", "del", f"{vip}/{length}", "dev", "lo"]
                subprocess.run(command, check=True)
            network._compute_checksums(link.node)
            undo.enter_context(serving(link.node, link.port))
        yield lab


@contextmanager
def serving(node: str, name: str) -> Iterator[None]:
    """A TCP and a UDP server on a backend."""
    servers: list[Any] = []
    with in_netns(node):
        servers = [_TcpServer(("::", PORT), _Talk), _UdpServer(("::", PORT), _Echo)]
    threads = []
    for server in servers:
        server.name = name
        threads.append(threading.Thread(target=server.serve_forever, args=(0.01,)))
        threads[-1].start()
    try:
        yield
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def own(lab: Lab, version: int) -> Address:
    """The load balancer's address, which is what backends see."""
    link = lab.topology.balancer
    return (link.node4 if version == 4 else link.node6)[0].ip


def snat(lab: Lab) -> Snat:
    """Translated to the load balancer's own addresses."""
    link = lab.topology.balancer
    return Snat((link.node4[0].ip,), (link.node6[0].ip,))


def services(lab: Lab) -> list[dict[str, Any]]:
    """One of each family and protocol, and for a port where nobody listens."""
    links = lab.topology.backend_links
    backends = {4: [str(each.node4[0].ip) for each in links]}
    backends[6] = [str(each.node6[0].ip) for each in links]
    return [
        {
            "name": f"{protocol}{version}",
            "vip": str(VIPS[version]),
            "port": [PORT, CLOSED],
            "protocol": protocol,
            "backends": backends[version],
            "forwarding": "snat",
            "table_size": 251,
        }
        for version in (4, 6)
        for protocol in ("tcp", "udp")
    ]


@pytest.fixture
def balancer(lab: Lab) -> Iterator[LoadBalancer]:
    """A load balancer on its host's only device. Nobody has learnt anything of a path yet."""
    forget_paths(lab)
    with in_netns(BALANCER), LoadBalancer(DEVICE, limits=SMALL, snat=snat(lab)) as balancer:
        for each in services(lab):
            balancer.add_service(**each)
        yield balancer


def forget_paths(lab: Lab) -> None:
    """Have all hosts forget the path MTUs that they were told of."""
    for namespace in lab.topology.namespaces:
        for family in ("-4", "-6"):
            flush = ["ip", "-n", namespace, family, "route", "flush", "cache"]
            subprocess.run(flush, check=True)


class Talk:
    """A client's connection to the VIP."""

    def __init__(self, version: int, port: int = PORT) -> None:
        with in_netns(CLIENT):
            self._socket = socket.create_connection((str(VIPS[version]), port), timeout=TIMEOUT)
        self._file = self._socket.makefile("rwb")
        self.said = self.ask(0)

    @property
    def node(self) -> str:
        """The backend's namespace."""
        return f"tp-{self.said['name']}"

    def ask(self, size: int, upload: int = 0) -> dict[str, str]:
        """Have so many bytes sent, by a line with so many in front; who sent them to whom."""
        self._file.write(b" " * upload + b"%d\n" % size)
        self._file.flush()
        said: dict[str, str] = json.loads(self._file.readline())
        assert self._file.read(size) == b"x" * size
        return said

    def close(self) -> None:
        """End it."""
        self._file.close()
        self._socket.close()


@pytest.mark.parametrize("version", [4, 6])
def test_tcp(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Every backend is reached, and sees the load balancer; nothing is dropped."""
    seen = set()
    for _ in range(REQUESTS):
        with closing(Talk(version)) as talk:
            assert ip_address(talk.said["peer"]) == own(lab, version)
            assert talk.ask(20_000) == talk.said
            seen.add(talk.said["name"])
    assert seen == {"be1", "be2", "be3"}
    counted = balancer.counters()
    mine = counted.services[balancer.service(f"tcp{version}").key]
    assert mine.flows == REQUESTS
    assert mine.replies > REQUESTS
    assert mine.reply_bytes > REQUESTS * 20_000
    assert not any(n for verdict, n in counted.verdicts.items() if verdict.startswith("drop"))


@pytest.mark.parametrize("version", [4, 6])
def test_udp(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Each datagram has its answer, from the VIP."""
    del balancer
    seen = set()
    for _ in range(REQUESTS):
        with closing(client_of(version)) as client:
            client.send(b"hello")
            said = json.loads(client.recv(1000))
            assert ip_address(said["peer"]) == own(lab, version)
            seen.add(said["name"])
    assert seen == {"be1", "be2", "be3"}


def client_of(version: int, port: int = PORT) -> socket.socket:
    """A client's socket for datagrams to the VIP, from which alone it takes answers."""
    with in_netns(CLIENT):
        client = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        client.settimeout(TIMEOUT)
        client.connect((str(VIPS[version]), port))
    return client


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_where_nobody_listens(balancer: LoadBalancer, version: int) -> None:
    """The backend's "port unreachable" gets to the client, and so does its reset."""
    del balancer
    with closing(client_of(version, CLOSED)) as client:
        client.send(b"hello")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1000)
    with in_netns(CLIENT), pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(VIPS[version]), CLOSED), timeout=TIMEOUT)


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_link_to_the_client(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """What the client's router says of too large answers gets to the backend, which learns."""
    with narrow_link():
        with closing(Talk(version)) as talk:
            assert talk.ask(DOWNLOAD) == talk.said
        assert learnt_mtu(talk.node, own(lab, version)) == NARROW
    counted = balancer.counters().services[balancer.service(f"tcp{version}").key]
    assert counted.reply_bytes > DOWNLOAD


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_in_fragments(balancer: LoadBalancer, version: int) -> None:
    """Of two to six fragments each: every byte is there and back, by several backends."""
    sizes = (1473, 2000, 4000, 4001, 8000)
    for _ in range(REQUESTS // 4):
        with closing(client_of(version)) as client:
            for size in sizes:
                data = bytes(at * 37 % 251 for at in range(size))
                client.send(data)
                assert client.recv(1 << 16) == data
    counted = balancer.counters()
    mine = counted.services[balancer.service(f"udp{version}").key]
    assert mine.flows == REQUESTS // 4
    assert mine.packets == mine.replies
    assert mine.packets >= REQUESTS // 4 * (2 + 2 + 3 + 3 + 6)
    assert len([each for each in mine.backends.values() if each.packets]) > 1
    assert not any(n for verdict, n in counted.verdicts.items() if verdict.startswith("drop"))


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_way_out(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Whoever sends more than the load balancer can send on learns of it: client and backend."""
    for to, upload in (("backends", UPLOAD), ("client", 0)):
        forget_paths(lab)
        with closing(Talk(version)) as talk, narrow_way(lab, version, to):
            assert talk.ask(0 if upload else DOWNLOAD, upload) == talk.said
            teller, node = (VIPS[version], CLIENT) if upload else (own(lab, version), talk.node)
            assert learnt_mtu(node, teller) == NARROW
    counted = balancer.counters()
    assert counted.verdicts["tx_too_big"] >= 2
    dropped = {verdict for verdict, n in counted.verdicts.items() if n and verdict[:4] == "drop"}
    assert dropped <= {"drop_mtu_quiet"}


@contextmanager
def narrow_way(lab: Lab, version: int, to: str) -> Iterator[None]:
    """The load balancer's ways to clients or backends take only so much."""
    links = [lab.topology.client] if to == "client" else lab.topology.backend_links
    networks = [str(link.ipv4 if version == 4 else link.ipv6) for link in links]
    link = lab.topology.balancer
    router = (link.router4 if version == 4 else link.router6).ip
    ip = ["ip", "-n", BALANCER, "route"]
    with ExitStack() as undo:
        for each in networks:
            subprocess.run([*ip, "add", each, "via", str(router), *LOCKED], check=True)
            undo.callback(subprocess.run, [*ip, "del", each], check=True)
        yield


@contextmanager
def narrow_link() -> Iterator[None]:
    """The router's way to the client takes only so much, and the client doesn't know."""
    command = ["ip", "-n", ROUTER, "link", "set", "client", "mtu"]
    subprocess.run([*command, str(NARROW)], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, "1500"], check=True)


def learnt_mtu(node: str, to: Address) -> int:
    """Path MTU that a host has learnt, 0 for none."""
    command = ["ip", "-n", node, "route", "get", str(to)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"expires.* mtu (\d+)", shown)
    return int(match[1]) if match else 0


# ---- The agent -----------------------------------------------------------------------------------


class Agents:
    """An agent in the load balancer's namespace, one process after the other."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.socket = directory / "agent.sock"
        self.file = directory / "towpath.yaml"
        link = lab.topology.balancer
        config = {
            "devices": [DEVICE],
            "snat": {"ipv4": [str(link.node4[0].ip)], "ipv6": [str(link.node6[0].ip)]},
            "limits": LIMITS,
            "api": {"socket": str(self.socket)},
            "state": {"directory": str(directory / "state"), "pins": str(lab.bpffs / "snat")},
            "services": services(lab),
        }
        self.file.write_text(yaml.safe_dump(config))
        self.process: subprocess.Popen[str] | None = None

    def check(self, **fields: Any) -> None:
        """Have the TCP services' backends checked. For an agent that isn't started yet."""
        config = yaml.safe_load(self.file.read_text())
        for each in config["services"]:
            if each["protocol"] == "tcp":
                each["health"] = FAST | {"type": "tcp"} | fields
        self.file.write_text(yaml.safe_dump(config))

    def states(self) -> dict[str, str]:
        """How the backends are that are checked, by their addresses."""
        with Client(self.socket) as client:
            checks = [each for version in VIPS for each in client.checks(f"tcp{version}")]
        return {str(each.backend): str(each.state) for each in checks}

    def start(self) -> None:
        """Start one, which takes over what the last one left."""
        command = [sys.executable, "-m", "towpath", "agent", "--config", str(self.file)]
        self.process = self.lab.spawn(BALANCER, command, log_to="snat.log")
        wait_until(self._serves, seconds=20, what="the agent to serve")

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.lab.directory / "snat.log").read_text()
        try:
            with Client(self.socket) as client:
                return client.status().pid == self.process.pid
        except ClientError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def end(self) -> None:
        """Kill it, and remove what works on without it."""
        self.kill()
        pins = self.lab.bpffs / "snat"
        limits = Limits(**LIMITS)
        with (
            in_netns(BALANCER),
            LoadBalancer(DEVICE, limits=limits, snat=snat(self.lab), pins=pins) as last,
        ):
            last.detach()


def test_the_agent_is_killed_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    """Connections go on all the while, each with its backend, and new ones are made."""
    agents = Agents(lab, tmp_path)
    agents.start()
    with ExitStack() as undo:
        talks = [undo.enter_context(closing(Talk(v))) for v in (4, 6) for _ in range(6)]
        done = threading.Event()
        failed: list[object] = []
        asked = 0

        def talk_on() -> None:
            nonlocal asked
            while not done.is_set():
                for talk in talks:
                    if talk.ask(3000) != talk.said:
                        failed.append(talk.said)
                    asked += 1
                with closing(Talk(4)) as new:
                    new.ask(10)

        thread = threading.Thread(target=talk_on)
        thread.start()
        try:
            for _ in range(4):
                agents.kill()
                before = asked
                agents.start()
                wait_until(lambda: asked > before + 24, seconds=20, what="requests")  # noqa: B023
        finally:
            done.set()
            thread.join()
        assert not failed
        with Client(agents.socket) as client:
            found = client.trace("198.51.100.2:40000 -> 203.0.113.10:7000 tcp")
            assert found.forwarding == "snat"
            verdicts = client.counters().verdicts
        assert not any(n for verdict, n in verdicts.items() if verdict.startswith("drop"))
    agents.end()


def test_backends_at_a_port_of_their_own(lab: Lab, tmp_path: Path) -> None:
    """Clients reach them at the VIP's, and checks at theirs; who doesn't listen is found down."""
    agents = Agents(lab, tmp_path)
    config = yaml.safe_load(agents.file.read_text())
    listening, silent, *_ = (str(each.node4[0].ip) for each in lab.topology.backend_links)
    config["services"] = [
        {
            "name": "own",
            "vip": str(VIP4),
            "port": OTHER,
            "forwarding": "snat",
            "table_size": 251,
            "health": {"type": "tcp", "interval": 0.1, "fall": 1, "rise": 1},
            "backends": [
                {"address": listening, "port": PORT},
                {"address": silent, "port": CLOSED},
            ],
        }
    ]
    agents.file.write_text(yaml.safe_dump(config))
    agents.start()
    try:
        with Client(agents.socket) as client:

            def states() -> dict[str, tuple[str, str]]:
                found = {each.backend: str(each.state) for each in client.checks("own")}
                in_force = {each.address: each.state for each in client.backend_status("own")}
                return {str(a): (found[a], str(in_force[a])) for a in found}

            wait_until(
                lambda: states() == {listening: ("up", "active"), silent: ("down", "quarantined")},
                seconds=20,
                what="the checks to tell them apart",
            )
            for _ in range(REQUESTS // 4):
                with closing(Talk(4, OTHER)) as talk:
                    assert talk.ask(3000)["name"] == "be1"
            ends = {each.translation for each in client.list_flows(service="own")}
            assert {each.backend_port for each in ends if each} == {PORT}
            assert {each.vip_port for each in ends if each} == {OTHER}
    finally:
        agents.end()


def test_backends_are_checked_at_their_own_address(lab: Lab, tmp_path: Path) -> None:
    """From the address that clients are translated to, and nobody else need be let in."""
    agents = Agents(lab, tmp_path)
    agents.check()
    links = lab.topology.backend_links
    everyone = [str(at[0].ip) for each in links for at in (each.node4, each.node6)]
    first = links[0]
    agents.start()
    wait_until(lambda: states(agents, everyone) == {"up"}, seconds=20, what="all to be up")
    with unanswered(lab, first.node, 4):
        gone = str(first.node4[0].ip)
        others = [each for each in everyone if each != gone]
        wait_until(lambda: states(agents, [gone]) == {"down"}, seconds=20, what="it to be down")
        assert states(agents, others) == {"up"}
        for _ in range(REQUESTS):
            with closing(Talk(4)) as talk:
                assert talk.said["name"] != first.port
    wait_until(lambda: states(agents, everyone) == {"up"}, seconds=20, what="all to be up again")
    agents.end()


def states(agents: Agents, backends: list[str]) -> set[str]:
    """The states of some backends."""
    found = agents.states()
    return {found.get(each, "unknown") for each in backends}


@contextmanager
def unanswered(lab: Lab, node: str, version: int) -> Iterator[None]:
    """A backend has no way back to the address that clients are translated to."""
    what = ["blackhole", str(own(lab, version))]
    subprocess.run(["ip", "-n", node, "route", "add", *what], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "-n", node, "route", "del", *what], check=True)
