# SPDX-License-Identifier: Apache-2.0
"""A balancer's end and a backend's, joined by veth: real packets for the decapsulating program.

The balancer's end encapsulates by raw sockets, so the kernel builds the outer header. While `relay`
runs, its tun device is the way to a VIP, and all that a client sends goes through the tunnel.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.prog.decap.harness import CLIENTS, PROTOCOLS, SOURCES, TARGETS, VIPS

from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BALANCER = "tpdc-lb"
BACKEND = "tpdc-be"
WIRE = "tpdc0"  # what either end calls its side of the veth pair
TUN = "tpdctun"
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PREFIX = {4: 32, 6: 128}
TIMEOUT = 60.0  # seconds, for what takes milliseconds
TUN_MTU = 1380  # and an outer header still fits into what the wire takes

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001


def ip(*arguments: str) -> None:
    """Run the ip command."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def wire() -> Iterator[None]:
    """Both namespaces with their addresses and routes, removed afterwards."""
    try:
        for name in (BALANCER, BACKEND):
            ip("netns", "add", name)
        pair = ("type", "veth", "peer", "name", WIRE, "netns", BACKEND)
        ip("link", "add", WIRE, "netns", BALANCER, *pair)
        _address(BALANCER, WIRE, (SOURCES, CLIENTS))
        _address(BACKEND, WIRE, (TARGETS,))
        _address(BACKEND, "lo", (VIPS,))
        for family in (4, 6):
            _route(BALANCER, family, TARGETS)
            _route(BACKEND, family, SOURCES)
            _route(BACKEND, family, CLIENTS)
        yield
    finally:
        for name in (BALANCER, BACKEND):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _address(where: str, device: str, sets: tuple[dict[int, str], ...]) -> None:
    # The link-local address too is used at once: neighbours are asked for from it.
    with in_netns(where):
        Path(f"/proc/sys/net/ipv6/conf/{device}/accept_dad").write_text("0")
    for addresses in sets:
        for family, address in addresses.items():
            flags = ("nodad",) if family == 6 else ()
            ip("-n", where, "address", "add", f"{address}/{PREFIX[family]}", "dev", device, *flags)
    ip("-n", where, "link", "set", device, "up")


def _route(where: str, family: int, targets: dict[int, str]) -> None:
    ip("-n", where, f"-{family}", "route", "add", targets[family], "dev", WIRE)


def until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Look until the condition holds. AssertionError: it doesn't, after that many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def listening(inside: int, kind: socket.SocketKind) -> socket.socket:
    """A socket of the backend, bound to the VIP; its port is the system's choice."""
    with in_netns(BACKEND):
        server = socket.socket(FAMILIES[inside], kind)
    server.bind((VIPS[inside], 0))
    server.settimeout(TIMEOUT)
    return server


def tunnel(outside: int, inside: int, *, traffic_class: int = 0) -> socket.socket:
    """A socket that sends whole IP packets to the backend, encapsulated."""
    with in_netns(BALANCER):
        raw = socket.socket(FAMILIES[outside], socket.SOCK_RAW, PROTOCOLS[inside])
    if outside == 4:
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
    else:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
    raw.bind((SOURCES[outside], 0))
    raw.connect((TARGETS[outside], 0))
    return raw


@contextmanager
def relay(outside: int, inside: int) -> Iterator[None]:
    """Send what the balancer's end routes to its tun device through a tunnel, meanwhile."""
    with ExitStack() as undo:
        raw = undo.enter_context(closing(tunnel(outside, inside)))
        stop = os.eventfd(0)
        undo.callback(os.close, stop)
        tun = _tun()
        undo.callback(os.close, tun)
        ip("-n", BALANCER, "link", "set", TUN, "mtu", str(TUN_MTU), "up")
        ip(
            "-n",
            BALANCER,
            f"-{inside}",
            "route",
            "add",
            VIPS[inside],
            "dev",
            TUN,
            "src",
            CLIENTS[inside],
        )
        thread = threading.Thread(target=_forward, args=(tun, raw, inside, stop))
        thread.start()
        undo.callback(thread.join)
        undo.callback(os.eventfd_write, stop, 1)
        yield


def _tun() -> int:
    # The file belongs to the namespace that it is opened in, and so does the device.
    with in_netns(BALANCER):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", TUN.encode(), _IFF_TUN_NO_PI))
    return tun


def _forward(tun: int, raw: socket.socket, inside: int, stop: int) -> None:
    while True:
        ready, _, _ = select.select([tun, stop], [], [])
        if stop in ready:
            return
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == inside:  # no router solicitation of the new device
            raw.send(packet)
