# SPDX-License-Identifier: Apache-2.0
"""A pod whose connect() no hook sees, the node that it is on, and backends.

::

    pod 10.244.0.2, fd00:1::2 -- tap1 node -- be1 -- 10.244.1.2, fd00:2::2
                                           -- be2 -- 10.244.2.2, fd00:3::2
"""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, socket
from typing import TYPE_CHECKING, Any

from tests.lab.harness_masquerade import ip

from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 60.0  # seconds; ends a hang
POD, POD6 = "10.244.0.2", "fd00:1::2"
BACKENDS, BACKENDS6 = ("10.244.1.2", "10.244.2.2"), ("fd00:2::2", "fd00:3::2")
NEAR = "10.244.0.3"
"""A backend on the pod's own network."""
VIP, VIP6 = "192.0.2.10", "2001:db8:77::10"
HTTP, DNS = 80, 53
_LINKS = (
    ("tap1", "10.244.0.1/24", "fd00:1::1/64", f"{POD}/24", f"{POD6}/64"),
    ("be1", "10.244.1.1/24", "fd00:2::1/64", f"{BACKENDS[0]}/24", f"{BACKENDS6[0]}/64"),
    ("be2", "10.244.2.1/24", "fd00:3::1/64", f"{BACKENDS[1]}/24", f"{BACKENDS6[1]}/64"),
)


class _Pages(BaseHTTPRequestHandler):
    """Says at which address it is and from which it was asked; or as many bytes as are wanted."""

    def do_GET(self) -> None:
        text = f"{self.connection.getsockname()[0]} {self.client_address[0]}\n".encode()
        with suppress(ValueError):
            text = bytes(int(self.path[1:]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Pages6(ThreadingHTTPServer):
    address_family = AF_INET6


@dataclass
class Lab:
    """The namespaces, by file descriptor. The calling thread is in the node's."""

    pod: int
    node: int
    backends: tuple[int, int]
    undo: ExitStack = field(default_factory=ExitStack)

    def run(self, *command: str) -> str:
        """What a command in the pod prints."""
        with in_netns(self.pod):
            ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
        return ran.stdout

    def curl(self, vip: str = VIP, path: str = "") -> tuple[str, str]:
        """Where a request of the pod's was answered, and from whom it came."""
        host = f"[{vip}]" if ":" in vip else vip
        said = self.run("curl", "-sS", "--max-time", "30", f"http://{host}:{HTTP}/{path}")
        backend, client = said.split()
        return backend, client

    def socket(self, kind: int, to: tuple[str, int]) -> socket:
        """A socket of the pod's that is connected; closed at the end."""
        with in_netns(self.pod):
            family = AF_INET6 if ":" in to[0] else AF_INET
            made = self.undo.enter_context(socket(family, kind))
        made.settimeout(LIMIT)
        made.connect(to)
        return made


@contextmanager
def lab() -> Iterator[Lab]:
    """Make it; everything is gone afterwards."""
    with ExitStack() as undo:
        pod, first, second, node = (undo.enter_context(new_netns()) for _ in range(4))
        undo.enter_context(in_netns(node))
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", family).write_text("1", encoding="ascii")
        for (name, *ours), inside in zip(_LINKS, (pod, first, second), strict=True):
            _join((name, node), ours[:2], inside, ours[2:])
        made = Lab(pod, node, (first, second))
        undo.enter_context(made.undo)
        for number, inside in enumerate(made.backends):
            for address in (BACKENDS[number], BACKENDS6[number]):
                with in_netns(inside):
                    serve_http(address, undo)
                    _serve_dns(address, undo)
        yield made


@contextmanager
def bridged() -> Iterator[Lab]:
    """A pod and one backend, 10.244.0.3, at ports of one bridge of the node's."""
    with ExitStack() as undo:
        pod, backend, node = (undo.enter_context(new_netns()) for _ in range(3))
        undo.enter_context(in_netns(node))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        ip("link add br0 type bridge\naddr add 10.244.0.1/24 dev br0\nlink set br0 up")
        for name, inside, address in (("tap1", pod, POD), ("be1", backend, NEAR)):
            with in_netns(inside):
                peer = f"/proc/{os.getpid()}/fd/{node}"
                ip(f"link add eth0 type veth peer name {name} netns {peer}")
                ip(f"addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up")
                ip("route add default via 10.244.0.1")
            ip(f"link set {name} master br0\nlink set {name} up")
        made = Lab(pod, node, (backend, backend))
        undo.enter_context(made.undo)
        with in_netns(backend):
            serve_http(NEAR, undo)
        yield made


def _join(device: tuple[str, int], ours: list[str], inside: int, theirs: list[str]) -> None:
    name, node = device
    with in_netns(inside):
        ip(f"link add eth0 type veth peer name {name} netns /proc/{os.getpid()}/fd/{node}")
    _address(name, ours)
    with in_netns(inside):
        ip("link set lo up")
        _address("eth0", theirs)
        for each in ours:
            ip(f"route add default via {each.partition('/')[0]}")


def _address(name: str, addresses: list[str]) -> None:
    four, six = addresses
    ip(f"addr add {four} dev {name}\naddr add {six} dev {name} nodad\nlink set {name} up")


def serve_http(address: str, undo: ExitStack) -> None:
    """Have an address of the calling thread's namespace answer HTTP, until the end."""
    kind = _Pages6 if ":" in address else ThreadingHTTPServer
    server = undo.enter_context(kind((address, HTTP), _Pages))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    undo.callback(thread.join)
    undo.callback(server.shutdown)


def _serve_dns(address: str, undo: ExitStack) -> None:
    """Answer each question with one address."""
    made = socket(AF_INET6 if ":" in address else AF_INET, SOCK_DGRAM)
    made.bind((address, DNS))

    def serve() -> None:
        with suppress(OSError):
            while True:
                question, client = made.recvfrom(2048)
                made.sendto(_answer(question), client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    undo.callback(made.close)


def _answer(question: bytes) -> bytes:
    """A DNS message that answers with an address (RFC 1035); what is no question comes back."""
    if len(question) < 12 + 5:
        return question
    end = question.index(b"\0", 12) + 5
    record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\x63"
    return question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:end] + record


__all__ = ["SOCK_DGRAM", "SOCK_STREAM", "Lab", "lab"]
