# SPDX-License-Identifier: Apache-2.0
"""A load balancer whose node is a backend, and frames that are sent to it and from it as they are.

::

    client -- eth0 node pod1 -- pod

Client and pod are wires that nobody listens on: what comes there was sent, and answered by tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tests.prog.masquerade.oracle import fresh

from towpath.datapath.balancer import Balancer
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model import Backend, Device, Limits, Local, Protocol, Service, Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

SECONDS = 30.0
QUIET = 0.2  # seconds in which nothing comes
LIMITS = Limits(services=64, backends=1000, flows=1 << 12, fragments=1 << 10, table_slots=1 << 16)
VIP, VIP6 = "192.0.2.10", "2001:db8:77::10"
REMOTE, REMOTE6 = "198.51.100.3", "fd51::3"
"""A backend on the client's side: what is for it comes out of the client's wire."""
CLIENT, CLIENT6 = "198.51.100.2", "fd51::2"
NODE, NODE6 = "198.51.100.1", "fd51::1"
POD, POD6 = "10.244.0.2", "fd00:1::2"
MACS = {
    "client": "02:00:00:00:00:02",
    "eth0": "02:00:00:00:00:01",
    "pod1": "02:00:00:00:01:01",
    "pod": "02:00:00:00:01:02",
}
PORT, BACKEND_PORT = 8080, 9000
_MINE = {"client": "eth0", "pod": "pod1"}
_ETH_P_ALL = 3
_NOISE = {131, 132, 133, 134, 135, 136, 143}  # ICMPv6: neighbours, routers, groups


@dataclass
class Wire:
    """The far end of a device: what is sent there, and what comes."""

    name: str
    socket: socket.socket

    def send(self, packet: Packet) -> None:
        """Put a packet on it."""
        self.socket.send(_frame(MACS[self.name], MACS[_MINE[self.name]], packet))

    def receive(self) -> bytes:
        """The next frame that isn't the node's own business; TimeoutError."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            frame = self.socket.recv(65535)
            if not _is_noise(Ether(frame)):
                return frame
        raise TimeoutError

    def is_quiet(self) -> bool:
        """Whether nothing more comes."""
        self.socket.settimeout(QUIET)
        try:
            while True:
                if not _is_noise(Ether(self.socket.recv(65535))):
                    return False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(SECONDS)

    def framed(self, packet: Packet) -> bytes:
        """A packet as the node sends it here."""
        return _frame(MACS[_MINE[self.name]], MACS[self.name], packet)


@dataclass
class Rig:
    """The load balancer, its wires, and what it counts."""

    balancer: Balancer
    client: Wire
    pod: Wire
    node: int
    before: dict[str, int] = field(default_factory=dict)

    def serve(self, *services: Service) -> None:
        """Have these services and no others."""
        self.balancer.apply(services)
        self.moved()

    def moved(self) -> dict[str, int]:
        """Counters that have moved: verdicts of XDP, and of programs at tc, as program.verdict."""
        verdicts = self.balancer.verdicts()
        for program, counts in self.balancer.local.counts().items():
            verdicts |= {f"{program}.{name}": n for name, n in counts.items() if name != "bytes"}
        quiet = {"pass_protocol", "pass_not_ip", "out.pass_other"}
        before, self.before = self.before, verdicts
        found = {name: n - before.get(name, 0) for name, n in verdicts.items()}
        return {name: n for name, n in found.items() if n and name not in quiet}

    def out(self, packet: Packet) -> tuple[bytes, dict[str, int]]:
        """The client sends; what the pod gets, and what was counted."""
        self.client.send(packet)
        return self.pod.receive(), self.moved()

    def back(self, packet: Packet) -> tuple[bytes, dict[str, int]]:
        """The pod sends; what the client gets, and what was counted."""
        self.pod.send(packet)
        return self.client.receive(), self.moved()


@contextmanager
def rigged() -> Iterator[Rig]:
    """A load balancer with a pod."""
    with ExitStack() as undo:
        client, pod, node = (undo.enter_context(new_netns()) for _ in range(3))
        undo.enter_context(in_netns(node))
        for name, inside in (("client", client), ("pod", pod)):
            _join(name, inside, node)
        for setting in (
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/all/accept_local",
        ):
            _set(setting, "1")
        _set("ipv4/conf/all/rp_filter", "0")
        for name in _MINE.values():
            _set(f"ipv4/conf/{name}/rp_filter", "0")
        _ip(
            "link set lo up",
            f"addr add {NODE}/24 dev eth0",
            f"addr add {NODE6}/64 dev eth0 nodad",
            "addr add 10.244.0.1/24 dev pod1",
            "addr add fd00:1::1/64 dev pod1 nodad",
            *(_neighbour(each, "client") for each in (CLIENT, CLIENT6, REMOTE, REMOTE6)),
            *(_neighbour(each, "pod") for each in (POD, POD6)),
        )
        wires = [undo.enter_context(_wire(*each)) for each in (("client", client), ("pod", pod))]
        snat = Snat((ip_address(NODE),), (ip_address(NODE6),))  # type: ignore[arg-type]
        balancer = Balancer(
            [Device("eth0")], limits=LIMITS, snat=snat, local=Local(devices=("pod*",), flows=1024)
        )
        undo.enter_context(balancer)
        yield Rig(balancer, wires[0], wires[1], node)


def service(*backends: str | Backend, **fields: Any) -> Service:
    """A service that is translated, of the family of its backends."""
    made = tuple(Backend(ip_address(each)) if isinstance(each, str) else each for each in backends)
    vip = ip_address(VIP if made[0].address.version == 4 else VIP6)
    known = {
        "name": f"s{vip}{fields.get('protocol', 'tcp')}",
        "vip": vip,
        "port": PORT,
        "protocol": Protocol.TCP,
        "forwarding": "snat",
        "table_size": 251,
        "backends": made,
    }
    return Service(**known | fields)


def routed(packet: Packet) -> Packet:
    """One hop further."""
    made = packet.copy()
    header = made[IP] if IP in made else made[IPv6]
    if IP in made:
        header.ttl -= 1
    else:
        header.hlim -= 1
    return fresh(made)


def _frame(source: str, to: str, packet: Packet) -> bytes:
    return bytes(Ether(src=source, dst=to, type=_type(packet)) / packet)


def _neighbour(address: str, name: str) -> str:
    return f"neigh replace {address} lladdr {MACS[name]} dev {_MINE[name]}"


def _type(packet: Packet) -> int:
    return 0x0800 if packet.__class__ is IP else 0x86DD


def _is_noise(frame: Packet) -> bool:
    if frame.type not in {0x0800, 0x86DD}:
        return True
    if IPv6 not in frame:
        return False
    body = bytes(frame[IPv6].payload)
    return frame[IPv6].nh in {0, 58} and bool(body) and (frame[IPv6].nh == 0 or body[0] in _NOISE)


@contextmanager
def _wire(name: str, netns: int) -> Iterator[Wire]:
    with in_netns(netns):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind(("eth0", _ETH_P_ALL))
    with made:
        made.settimeout(SECONDS)
        yield Wire(name, _Incoming(made))  # type: ignore[arg-type]


class _Incoming:
    """A packet socket without what it has sent itself."""

    def __init__(self, inner: socket.socket) -> None:
        self.send, self.settimeout = inner.send, inner.settimeout
        self._inner = inner

    def recv(self, most: int) -> bytes:
        """The next frame that came in."""
        while True:
            frame, where = self._inner.recvfrom(most)
            if where[2] != socket.PACKET_OUTGOING:
                return frame


def _join(name: str, inside: int, node: int) -> None:
    ours = _MINE[name]
    with in_netns(inside):
        _set("ipv6/conf/default/disable_ipv6", "1")
        peer = f"/proc/{os.getpid()}/fd/{node}"
        _ip(
            f"link add eth0 address {MACS[name]} type veth peer name {ours} netns {peer}",
            "link set eth0 arp off",
            "link set eth0 up",
        )
    _ip(f"link set {ours} address {MACS[ours]}", f"link set {ours} up")


def _ip(*lines: str) -> None:
    text = "\n".join(lines)
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True, timeout=SECONDS)


def _set(name: str, value: str) -> None:
    Path("/proc/sys/net", name).write_text(value, encoding="ascii")
