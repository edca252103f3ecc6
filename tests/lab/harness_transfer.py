# SPDX-License-Identifier: Apache-2.0
"""Large transfers between a client and the backends, whose every byte is checked."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer, UDPServer
from typing import TYPE_CHECKING

from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import CLIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab
    from towpath.lab.traffic import Address

PORT = 7100
SIZE = 20 << 20
TIMEOUT = 60.0
BLOCK = bytes(range(256)) * 256
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class _Server(ThreadingTCPServer):
    daemon_threads = True
    address_family = socket.AF_INET6  # and IPv4 with it
    name = ""


class _Datagrams(UDPServer):
    max_packet_size = 1 << 16
    name = ""


class _Handler(StreamRequestHandler):
    """GET: so many bytes. PUT: reads them, and says what they hash to. Both say who it is first."""

    server: _Server

    def handle(self) -> None:
        while line := self.rfile.readline():
            word, size = line.split()
            self.wfile.write(self.server.name.encode() + b"\n")
            if word == b"GET":
                for _ in range(int(size) // len(BLOCK)):
                    self.wfile.write(BLOCK)
            else:
                self.wfile.write(_digest(self.rfile, int(size)).encode() + b"\n")


class _Answer(BaseRequestHandler):
    """Says who has received how many bytes, from the address that was asked."""

    server: _Datagrams

    def handle(self) -> None:
        data, sock = self.request
        text = f"{self.server.name} {hashlib.sha256(data).hexdigest()}"
        sock.sendto(text.encode(), self.client_address)


def _digest(stream: object, size: int) -> str:
    read = hashlib.sha256()
    while size and (data := stream.read(min(size, 1 << 16))):  # type: ignore[attr-defined]
        read.update(data)
        size -= len(data)
    return read.hexdigest()


def pattern_digest(size: int) -> str:
    """What so many bytes of the pattern hash to."""
    whole = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        whole.update(BLOCK)
    return whole.hexdigest()


@contextmanager
def transfer_servers(lab: Lab, *vips: Address) -> Iterator[None]:
    """Servers on each backend, for streams and for datagrams, reached through the VIPs."""
    with ExitStack() as undo:
        for link in lab.topology.backend_links:
            with in_netns(link.node):
                servers = [undo.enter_context(_Server(("", PORT), _Handler))]
                for vip in vips:
                    kind = type("", (_Datagrams,), {"address_family": FAMILIES[vip.version]})
                    servers.append(undo.enter_context(kind((str(vip), PORT), _Answer)))
            for server in servers:
                server.name = link.port
                thread = threading.Thread(target=server.serve_forever, args=(0.01,))
                thread.start()
                undo.callback(thread.join)
                undo.callback(server.shutdown)
        yield


def download(vip: Address, size: int = SIZE) -> tuple[str, str, str]:
    """Fetch so many bytes by a new connection: who sent them, to which address, their hash."""
    with connected(vip) as client, client.makefile("rb") as stream:
        client.sendall(f"GET {size}\n".encode())
        name = stream.readline().decode().strip()
        return name, client.getsockname()[0], _digest(stream, size)


def upload(vip: Address, size: int = SIZE) -> tuple[str, str, str]:
    """Send so many bytes: who received them, from which address, and what it says they hash to."""
    with connected(vip) as client, client.makefile("rb") as stream:
        client.sendall(f"PUT {size}\n".encode())
        name = stream.readline().decode().strip()
        for _ in range(size // len(BLOCK)):
            client.sendall(BLOCK)
        return name, client.getsockname()[0], stream.readline().decode().strip()


def connected(vip: Address) -> socket.socket:
    """A client's connection to a server behind the VIP."""
    with in_netns(CLIENT):
        return socket.create_connection((str(vip), PORT), timeout=TIMEOUT)


def ping(vip: Address, count: int) -> list[bytes]:
    """Send echo requests, each when the one before has been answered: their data as it came."""
    protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[vip.version]
    request = {4: 8, 6: 128}[vip.version]
    answers = []
    with in_netns(CLIENT):
        # Such sockets are for groups that are named here; the kernel makes the checksums.
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        with socket.socket(FAMILIES[vip.version], socket.SOCK_DGRAM, protocol) as client:
            client.settimeout(TIMEOUT)
            client.connect((str(vip), 0))
            for number in range(count):
                data = bytes(at % 251 for at in range(100 * number))
                client.send(struct.pack("!BBHHH", request, 0, 0, 0, number) + data)
                answers.append(client.recv(1 << 16)[8:])
    return answers


def datagrams(vip: Address, payloads: list[bytes]) -> list[tuple[str, str]]:
    """Send datagrams from one port, each when the one before has been answered: the answers."""
    with datagram_client(vip) as client:
        return [_answered(client, payload) for payload in payloads]


@contextmanager
def datagram_client(vip: Address) -> Iterator[socket.socket]:
    """A client's socket for datagrams to the VIP, its own address being known."""
    with in_netns(CLIENT), socket.socket(FAMILIES[vip.version], socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        client.connect((str(vip), PORT))
        yield client


def asked(client: socket.socket) -> str:
    """Which backend answers a datagram."""
    name, _ = _answered(client, b"who?")
    return name


def _answered(client: socket.socket, payload: bytes) -> tuple[str, str]:
    client.send(payload)
    name, digest = client.recv(1000).decode().split()
    return name, digest
