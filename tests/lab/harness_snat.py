# SPDX-License-Identifier: Apache-2.0
"""For source NAT: a lab whose backends have neither VIP nor decapsulation, and its clients."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer, UDPServer
from typing import TYPE_CHECKING, Any

from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab, network
from towpath.lab.topology import CLIENT, DEVICE, VIP4, VIP6
from towpath.model import Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model import Address

PORT, CLOSED, OTHER = 7000, 7001, 80
TIMEOUT = 60.0  # seconds, for what takes milliseconds
VIPS: dict[int, Address] = {4: VIP4, 6: VIP6}
BACKENDS = 3
SMALL_DATAGRAM = 100
THOUGHT = 0.3  # seconds


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
            mtu = {"mtu": path_mtu(self.connection)}
            self.wfile.write(json.dumps(said | mtu).encode() + b"\n" + b"x" * int(line))


class _Late(StreamRequestHandler):
    """Answers when it has thought for a while, in which nothing is sent."""

    def handle(self) -> None:
        line = self.rfile.readline()
        time.sleep(THOUGHT)
        self.wfile.write(line)


class _Echo(BaseRequestHandler):
    """The same to a small datagram; a large one comes back."""

    server: _UdpServer

    def handle(self) -> None:
        data, answering = self.request
        said = {"name": self.server.name, "peer": plain(self.client_address[0])}
        answer = data if len(data) > SMALL_DATAGRAM else json.dumps(said).encode()
        answering.sendto(answer, self.client_address)


def path_mtu(connection: socket.socket) -> int:
    """What a TCP socket believes that its path takes: of struct tcp_info, tcpi_pmtu."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
    (mtu,) = struct.unpack_from("=I", info, 60)
    return int(mtu)


def plain(address: str) -> str:
    """An address without the mark of one family within the other."""
    return address.removeprefix("::ffff:")


@contextmanager
def snat_lab() -> Iterator[Lab]:
    """Three backends that know nothing of VIPs."""
    with Lab.up(BACKENDS) as lab, ExitStack() as undo:
        for link in lab.topology.backend_links:
            for vip, length in ((VIP4, 32), (VIP6, 128)):
                command = ["ip", "-n", link.node, "address", "del", f"{vip}/{length}", "dev", "lo"]
                subprocess.run(command, check=True)
            network.switch_off(link.node, DEVICE, *network.SENDERS_OFFLOADS)
            undo.enter_context(serving(link.node, link.port))
        yield lab


@contextmanager
def serving(node: str, name: str) -> Iterator[None]:
    """A TCP and a UDP server on a backend."""
    with in_netns(node):
        servers = [_TcpServer(("::", PORT), _Talk), _UdpServer(("::", PORT), _Echo)]
    with _at_work(name, servers):
        yield


@contextmanager
def answering_late(node: str, name: str) -> Iterator[None]:
    """A TCP server on a backend, at the port where else nobody listens."""
    with in_netns(node):
        server = _TcpServer(("::", CLOSED), _Late)
    with _at_work(name, [server]):
        yield


@contextmanager
def _at_work(name: str, servers: list[Any]) -> Iterator[None]:
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


class Talk:
    """A client's connection to the VIP."""

    def __init__(self, version: int, port: int = PORT) -> None:
        with in_netns(CLIENT):
            self._socket = socket.create_connection((str(VIPS[version]), port), timeout=TIMEOUT)
        self._file = self._socket.makefile("rwb")
        self.their_mtu = 0
        self.said = self.ask(0)

    @property
    def node(self) -> str:
        """The backend's namespace."""
        return f"tp-{self.said['name']}"

    @property
    def mtu(self) -> int:
        """What this side believes that the path takes; `their_mtu` is what the backend does."""
        return path_mtu(self._socket)

    def ask(self, size: int, upload: int = 0) -> dict[str, str]:
        """Have so many bytes sent, by a line with so many in front; who sent them to whom."""
        self._file.write(b" " * upload + b"%d\n" % size)
        self._file.flush()
        said = json.loads(self._file.readline())
        assert self._file.read(size) == b"x" * size
        self.their_mtu = said.pop("mtu")
        return dict(said)

    def close(self) -> None:
        """End it."""
        self._file.close()
        self._socket.close()
