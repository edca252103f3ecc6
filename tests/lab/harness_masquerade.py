# SPDX-License-Identifier: Apache-2.0
"""A pod, the node that it is on, and a network that the node has two ways into.

::

    pod 10.244.0.2, fd00:1::2 -- veth1 node -- eth0 192.168.0.1/24 -- .100, 2001:db8:1::100  world
                                            -- eth1 10.0.0.1/24    -- .100
"""

from __future__ import annotations

import os
import socket as sockets
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.kernel.net.netns import in_netns, new_netns
from towpath.lab.waiting import wait_until
from towpath.model.masquerade import Rule, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.datapath.masquerade.follower import Follower

LIMIT = 60.0  # seconds; ends a hang
POD, POD6 = "10.244.0.2", "fd00:1::2"
NEAR, NEAR6, FAR = "192.168.0.100", "2001:db8:1::100", "10.0.0.100"
RULE = Rule(("veth*",), (ip_network("10.244.0.0/24"), ip_network("fd00:1::/64")))
SECTION = Section(rules=(RULE,), flows=8192)
PINS = Path("/sys/fs/bpf/towpath-masquerade")

_POD = f"""
link set lo up
addr add {POD}/24 dev eth0
addr add {POD6}/64 dev eth0 nodad
link set eth0 up
route add default via 10.244.0.1
route add default via fd00:1::1
"""
_NODE = """
link set lo up
addr add 10.244.0.1/24 dev veth1
addr add fd00:1::1/64 dev veth1 nodad
addr add 192.168.0.1/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
addr add 10.0.0.1/24 dev eth1
link set veth1 up
link set eth0 up
link set eth1 up
"""
_WORLD = f"""
link set lo up
addr add {NEAR}/24 dev eth0
addr add {NEAR6}/64 dev eth0 nodad
addr add {FAR}/24 dev eth1
link set eth0 up
link set eth1 up
"""


def ip(command: str, netns: int | None = None) -> None:
    """Run iproute2's command, or several lines of them."""
    with ExitStack() as undo:
        if netns is not None:
            undo.enter_context(in_netns(netns))
        subprocess.run(["ip", "-batch", "-"], input=command, text=True, check=True, timeout=LIMIT)


@dataclass
class Lab:
    """The three namespaces, by file descriptor. The calling thread is in the node's."""

    pod: int
    node: int
    world: int
    undo: ExitStack = field(default_factory=ExitStack)

    def socket(self, netns: int, kind: int, at: str = "", port: int = 0) -> sockets.socket:
        """A socket of a namespace, bound; closed at the end."""
        family = sockets.AF_INET6 if ":" in at else sockets.AF_INET
        with in_netns(netns):
            made = self.undo.enter_context(sockets.socket(family, kind))
        made.settimeout(LIMIT)
        if kind == sockets.SOCK_STREAM:
            made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        made.bind((at, port))
        return made

    def listening(self, at: str, port: int) -> sockets.socket:
        """A listener of the world's."""
        made = self.socket(self.world, sockets.SOCK_STREAM, at, port)
        made.listen()
        return made

    def connect(self, at: str, port: int, listener: sockets.socket) -> tuple[Any, Any, str]:
        """A connection from the pod: its end, the world's end, and whom that sees."""
        ours = self.socket(self.pod, sockets.SOCK_STREAM, POD6 if ":" in at else POD)
        ours.connect((at, port))
        theirs, peer = listener.accept()
        self.undo.enter_context(theirs)
        theirs.settimeout(LIMIT)
        return ours, theirs, str(peer[0])


@contextmanager
def lab() -> Iterator[Lab]:
    """Make it; everything is gone afterwards."""
    with ExitStack() as undo:
        pod, node, world = (undo.enter_context(new_netns()) for _ in range(3))
        with in_netns(world):
            for name in ("eth0", "eth1"):
                peer = f"link add {name} type veth peer name {name} netns {_path(node)}"
                ip(peer)
        with in_netns(pod):
            ip(f"link add eth0 type veth peer name veth1 netns {_path(node)}")
        ip(_WORLD, world)
        undo.enter_context(in_netns(node))
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", family).write_text("1", encoding="ascii")
        ip(_NODE)
        ip(_POD, pod)
        made = Lab(pod, node, world)
        undo.enter_context(made.undo)
        yield made


def _path(netns: int) -> str:
    return f"/proc/{os.getpid()}/fd/{netns}"


def transfer(sender: sockets.socket, receiver: sockets.socket, size: int) -> None:
    """Send so many bytes one way, and have them be what was sent."""
    data = os.urandom(1 << 16)
    chunks = size >> 16

    def send() -> None:
        for _ in range(chunks):
            sender.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(chunks):
        got = bytearray()
        while len(got) < len(data):
            part = receiver.recv(len(data) - len(got))
            assert part
            got += part
        assert got == data
    thread.join()


def moved(follower: Follower) -> Callable[[], dict[str, int]]:
    """What has been counted since this was called, as program.verdict."""
    from towpath.datapath.masquerade.tables import read_counts  # noqa: PLC0415

    def now() -> dict[str, int]:
        found = follower.asked(lambda node: read_counts(node.program))
        return {f"{p}.{name}": value for p, each in found.items() for name, value in each.items()}

    before = now()
    return lambda: {name: v - before[name] for name, v in now().items() if v != before[name]}


def checksum(data: bytes) -> int:
    """RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait for something to become so."""
    wait_until(until, seconds=LIMIT, what=what)
