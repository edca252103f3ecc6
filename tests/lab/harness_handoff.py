# SPDX-License-Identifier: Apache-2.0
"""A load balancer between two wires, at whose far ends backends appear when they are told to.

Until then nobody answers for their addresses: whatever is sent to them has to wait.
"""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from towpath.datapath.balancer import Balancer
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns
from towpath.model import Backend, Device, Limits, Protocol, Service, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address
    from typing import Literal

    Address = IPv4Address | IPv6Address
    Mode = Literal["native", "generic"]

BALANCER = "tph-lb"
NEAR, FAR = "tph0", "tph1"  # devices of the load balancer, and the namespaces they lead to
WIRE = "wire"  # what the far end calls its side
MACS = {NEAR: "02:00:00:00:00:10", FAR: "02:00:00:00:00:20"}
OWN = {
    NEAR: {4: "192.0.2.1", 6: "2001:db8:2::1"},
    FAR: {4: "198.51.100.1", 6: "2001:db8:5::1"},
}
PREFIX = {4: 24, 6: 64}
CLIENTS = {4: "203.0.113.77", 6: "2001:db8:3::77"}
VIPS = {4: ip_address("203.0.113.10"), 6: ip_address("2001:db8:4::10")}
CARRIED = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
PORT = 80
TIMEOUT = 60.0  # seconds, for what takes milliseconds
SMALL = Limits(services=4, backends=16, flows=4096, table_slots=4096)


def run(*command: str) -> None:
    """Run a command, which has to succeed."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def until(condition: Callable[[], bool], what: str) -> None:
    """Look until the condition holds. AssertionError: it doesn't within TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


@contextmanager
def wires() -> Iterator[None]:
    """The three namespaces with their devices, removed afterwards."""
    namespaces = (BALANCER, NEAR, FAR)
    with ExitStack() as undo:
        for name in namespaces:
            run("ip", "netns", "add", name)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
        for name in (NEAR, FAR):
            _wire(name)
            undo.enter_context(_polling(name))
        yield


def _wire(name: str) -> None:
    link = ("link", "add", name, "address", MACS[name], "netns", BALANCER)
    run("ip", *link, "type", "veth", "peer", "name", WIRE, "netns", name)
    for where, device in ((BALANCER, name), (name, WIRE)):
        with in_netns(where):
            Path(f"/proc/sys/net/ipv6/conf/{device}/accept_dad").write_text("0")
        run("ip", "-n", where, "link", "set", device, "up")
    for family, address in OWN[name].items():
        run("ip", "-n", BALANCER, "address", "add", f"{address}/{PREFIX[family]}", "dev", name)
        # Ask often and for long: the answer comes when the test says so.
        with in_netns(BALANCER):
            settings = Path(f"/proc/sys/net/ipv{family}/neigh/{name}")
            (settings / "retrans_time_ms").write_text("50")
            (settings / "mcast_solicit").write_text(str(int(TIMEOUT / 0.05)))


@contextmanager
def _polling(where: str) -> Iterator[None]:
    """Have the far end take what comes by XDP: see ``bpf/lab/pass.bpf.c``."""
    with in_netns(where), taking_fragments(BpfObject.packaged("lab_pass")) as obj:
        obj.load()
        with attach_xdp(obj.programs["pass"], socket.if_nametoindex(WIRE), "native"):
            yield


@dataclass
class Host:
    """Something at the far end of a wire."""

    where: str
    address: Address

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.address.version

    def appear(self) -> None:
        """Begin to answer for the address."""
        flags = ("nodad",) if self.family == 6 else ()
        prefix = f"{self.address}/{PREFIX[self.family]}"
        run("ip", "-n", self.where, "address", "add", prefix, "dev", WIRE, *flags)

    def vanish(self) -> None:
        """Answer no more."""
        prefix = f"{self.address}/{PREFIX[self.family]}"
        run("ip", "-n", self.where, "address", "delete", prefix, "dev", WIRE)

    def listen(self, inside: int) -> socket.socket:
        """A socket for packets with packets of a family inside."""
        kind = socket.AF_INET if self.family == 4 else socket.AF_INET6
        with in_netns(self.where):
            listening = socket.socket(kind, socket.SOCK_RAW, CARRIED[inside])
        listening.settimeout(TIMEOUT)
        return listening


def receive(listening: socket.socket) -> bytes:
    """The next packet's inside: IPv4 sockets see the outer header too, which has no options."""
    packet = listening.recv(65536)
    return packet[20:] if listening.family == socket.AF_INET else packet


@contextmanager
def client() -> Iterator[socket.socket]:
    """Sends whole frames from the near wire's far end."""
    with in_netns(NEAR):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        with in_netns(NEAR):
            raw.bind((WIRE, 0))
        yield raw


def frame(inside: int, sport: int, payload: bytes = b"towpath", **fields: Any) -> bytes:
    """A datagram of a client's to the VIP, as it arrives at the load balancer."""
    ends = {"src": CLIENTS[inside], "dst": str(VIPS[inside])}
    header = IP(**ends, **fields) if inside == 4 else IPv6(**ends, **fields)
    link = Ether(dst=MACS[NEAR], src="02:00:00:00:00:11")
    return bytes(link / header / UDP(sport=sport, dport=PORT) / Raw(payload))


@contextmanager
def balancing(
    inside: int, *backends: Address, mode: Mode = "native", source: Source | None = None
) -> Iterator[Balancer]:
    """The load balancer on both wires, with one service."""
    devices = [Device(name, mode) for name in (NEAR, FAR)]
    members = tuple(Backend(address) for address in backends)
    service = Service("handoff", VIPS[inside], PORT, Protocol.UDP, members, table_size=251)
    with in_netns(BALANCER), Balancer(devices, source=source, limits=SMALL) as balancer:
        balancer.apply([service])
        yield balancer
