# SPDX-License-Identifier: Apache-2.0
"""A balancer that is a backend too: on its node itself, and in a pod; and one elsewhere.

::

    client 198.51.100.2, fd51::2 -- eth0 node -- pod1 -- 10.244.0.2, fd00:1::2   pod
                                          |---- eth1 -- 10.77.0.2, fd77::2      remote
                                          '---- eth2 -- 198.51.100.2 by a route, for answers

The client has a second way from the node, by which a test may have its answers come.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.harness_masquerade import ip

from towpath import Local
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model import Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 60.0  # seconds; ends a hang
VIPS = {4: "192.0.2.10", 6: "2001:db8:77::10"}
CLIENT = {4: "198.51.100.2", 6: "fd51::2"}
HOST = {4: "198.51.100.1", 6: "fd51::1"}
POD = {4: "10.244.0.2", 6: "fd00:1::2"}
REMOTE = {4: "10.77.0.2", 6: "fd77::2"}
OURS = {4: "10.77.0.1", 6: "fd77::1"}
PORT, BACKEND_PORT = 8080, 9000
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PODS = Local(devices=("pod*",), flows=1024)
_LINKS = {
    "eth0": (("198.51.100.1/24", "fd51::1/64"), ("198.51.100.2/24", "fd51::2/64")),
    "pod1": (("10.244.0.1/24", "fd00:1::1/64"), ("10.244.0.2/24", "fd00:1::2/64")),
    "eth1": (("10.77.0.1/24", "fd77::1/64"), ("10.77.0.2/24", "fd77::2/64")),
}


@dataclass
class Lab:
    """The namespaces, by file descriptor. The calling thread is in the node's."""

    client: int
    pod: int
    remote: int
    node: int
    undo: ExitStack

    def connect(self, version: int, port: int = PORT) -> Talk:
        """A connection of the client's to the VIP."""
        with in_netns(self.client):
            return Talk(socket.create_connection((VIPS[version], port), timeout=LIMIT))

    def datagrams(self, version: int, port: int = PORT) -> socket.socket:
        """A socket of the client's that takes what comes from the VIP alone."""
        with in_netns(self.client):
            made = self.undo.enter_context(socket.socket(FAMILIES[version], socket.SOCK_DGRAM))
        made.settimeout(LIMIT)
        made.connect((VIPS[version], port))
        return made

    def on(self, netns: int, *commands: str) -> None:
        """Run commands of ip somewhere."""
        with in_netns(netns):
            ip("\n".join(commands))

    def second_way(self) -> None:
        """Have the client's answers leave by another device than its packets come in by."""
        self._link("eth2", self.client, "eth9")
        for version, (ours, theirs) in {
            4: ("203.0.113.1/24", "203.0.113.2/24"),
            6: ("fd52::1/64", "fd52::2/64"),
        }.items():
            nodad = " nodad" if version == 6 else ""
            gateway = theirs.partition("/")[0]
            ip(f"addr add {ours} dev eth2{nodad}")
            self.on(self.client, f"addr add {theirs} dev eth9{nodad}")
            ip(f"route add {CLIENT[version]} via {gateway} dev eth2")

    def _link(self, name: str, inside: int, there: str = "eth0") -> None:
        with in_netns(inside):
            peer = f"/proc/{os.getpid()}/fd/{self.node}"
            ip(f"link add {there} type veth peer name {name} netns {peer}\nlink set {there} up")
        ip(f"link set {name} up")


class Talk:
    """A connection, on which each line is answered by who is there and whom he sees."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rwb")
        self.said = self.ask()

    @property
    def who(self) -> str:
        """The backend: host, pod or remote."""
        return str(self.said["who"])

    def ask(self, size: int = 0, upload: int = 0) -> dict[str, Any]:
        """Have so many bytes sent, by a line with so many in front."""
        self._file.write(b" " * upload + b"%d\n" % size)
        self._file.flush()
        said: dict[str, Any] = json.loads(self._file.readline())
        assert self._file.read(size) == b"x" * size
        return said

    def close(self) -> None:
        """End it."""
        self._file.close()
        self._socket.close()


@contextmanager
def lab() -> Iterator[Lab]:
    """Make it; everything is gone afterwards."""
    with ExitStack() as undo:
        client, pod, remote, node = (undo.enter_context(new_netns()) for _ in range(4))
        undo.enter_context(in_netns(node))
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", family).write_text("1", encoding="ascii")
        for setting in ("all", "default"):
            Path(f"/proc/sys/net/ipv4/conf/{setting}/rp_filter").write_text("0", encoding="ascii")
        ip("link set lo up")
        made = Lab(client, pod, remote, node, undo)
        for (name, (ours, theirs)), inside in zip(
            _LINKS.items(), (client, pod, remote), strict=True
        ):
            made._link(name, inside)
            _address(name, ours)
            with in_netns(inside):
                ip("link set lo up")
                _address("eth0", theirs)
                for each in ours:
                    ip(f"route add default via {each.partition('/')[0]}")
        for name, inside in (("host", node), ("pod", pod), ("remote", remote)):
            with in_netns(inside):
                serve(name, undo)
        yield made


def _address(device: str, addresses: tuple[str, str]) -> None:
    four, six = addresses
    ip(f"addr add {four} dev {device}\naddr add {six} dev {device} nodad")


def snat() -> Snat:
    """What remote backends see."""
    return Snat((OURS[4],), (OURS[6],))  # type: ignore[arg-type]


def service(version: int, *backends: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A service of TCP as the file has it; its name says of which family and protocol it is."""
    protocol = fields.get("protocol", "tcp")
    return {
        "name": f"{protocol}{version}",
        "vip": VIPS[version],
        "port": PORT,
        "forwarding": "snat",
        "table_size": 1021,
        "backends": [each if isinstance(each, dict) else {"address": each} for each in backends],
    } | fields


def serve(who: str, undo: ExitStack, ports: tuple[int, ...] = (PORT, BACKEND_PORT)) -> None:
    """Have the calling thread's namespace answer by TCP and UDP until the end."""
    for port in ports:
        listener = undo.enter_context(_listener(port))
        undo.callback(listener.shutdown, socket.SHUT_RDWR)
        datagrams = undo.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        datagrams.bind(("::", port))
        _begin(_accept, listener, who)
        _begin(_echo, datagrams, who)


def _listener(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _begin(what: Any, *given: object) -> None:
    threading.Thread(target=what, args=given, daemon=True).start()


def _accept(listener: socket.socket, who: str) -> None:
    with suppress(OSError):
        while True:
            connection, peer = listener.accept()
            _begin(_talk, connection, _saying(who, peer, connection.getsockname()))


def _talk(connection: socket.socket, said: bytes) -> None:
    with suppress(OSError), connection, connection.makefile("rwb") as file:
        for line in file:
            file.write(said + b"\n" + b"x" * int(line))
            file.flush()


def _echo(datagrams: socket.socket, who: str) -> None:
    """A large datagram comes back, a small one has an answer like a line of TCP."""
    with suppress(OSError):
        while True:
            data, peer = datagrams.recvfrom(65535)
            small = len(data) < 100
            said = _saying(who, peer, datagrams.getsockname())
            datagrams.sendto(said if small else data, peer)


def _saying(who: str, peer: Any, mine: Any) -> bytes:
    plain = str(peer[0]).removeprefix("::ffff:")
    return json.dumps({"who": who, "peer": plain, "port": mine[1]}).encode()
