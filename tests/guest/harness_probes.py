# SPDX-License-Identifier: Apache-2.0
"""Health checks and clients' packets on one wire, to be compared byte for byte."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from tests.guest.harness_guest import TIMEOUT, run

from towpath.kernel.net.netns import in_netns
from towpath.lab import LabError
from towpath.lab.topology import BALANCER, DEVICE, ROUTER
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scapy.packet import Packet
    from tests.guest.harness_guest import Address

    from towpath.lab import Topology
    from towpath.model import Device

_SOL_PACKET, _PACKET_AUXDATA, _VLAN_VALID = 263, 8, 1 << 4
_AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata
_TAGGED = b"\x81\x00"
_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_OUTER = {4: 20, 6: 40}
_CARRIES = {4: 9, 6: 6}  # where an IP header says what it carries
_TUNNELS = (4, 41)


@dataclass(frozen=True)
class Joint:
    """How router and load balancer are joined."""

    topology: Topology
    devices: tuple[Device, ...]
    """The load balancer's."""
    own: dict[int, Address]
    """Its address towards the backends, by IP version."""
    beside: dict[int, Address]
    """The router's on the same link."""
    from_clients: int = 0
    """The VLAN that clients' packets come in; 0: none."""
    to_backends: int = 0


@dataclass(frozen=True)
class Frame:
    """A frame of the wire."""

    raw: bytes

    @property
    def vlan(self) -> int:
        """The VLAN that it is in, 0 for none."""
        return int.from_bytes(self.raw[14:16], "big") if self.raw[12:14] == _TAGGED else 0

    @property
    def packet(self) -> bytes:
        """What is in it."""
        return self.raw[18 if self.vlan else 14 :]

    @property
    def version(self) -> int:
        """That of the packet, 0 of what is none."""
        ethertype = self.raw[16:18] if self.vlan else self.raw[12:14]
        return {code: version for version, code in _ETHERTYPES.items()}.get(ethertype, 0)

    def carried(self, outside: int) -> bytes:
        """The packet in the tunnel's of that IP version, or for 0 the packet; b"" if not."""
        if not outside:
            return self.packet if self.version else b""
        tunnel = self.version == outside and self.packet[_CARRIES[outside]] in _TUNNELS
        return self.packet[_OUTER[outside] :] if tunnel else b""

    def without_port(self) -> bytes:
        """The same with a TCP source port of 0."""
        made = read(self.packet)
        made[TCP].sport, made[TCP].chksum = 0, None
        return self.raw[: -len(self.packet)] + bytes(made)


def read(packet: bytes) -> Packet:
    """An IP packet, so that its fields can be read."""
    return IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)


def is_for(packet: bytes, to: Address, port: int) -> bool:
    """Whether a packet is a segment to that address and port."""
    if not packet:
        return False
    made = read(packet)
    return TCP in made and (made.dst, made[TCP].dport) == (str(to), port)


def untranslated(packet: bytes, source: Address, vip: Address) -> bytes:
    """A client's packet that becomes this one when it is translated, but for the port."""
    made = read(packet)
    made.src, made.dst = str(source), str(vip)
    if vip.version == 4:
        made.ttl += 1
        made.chksum = None
    else:
        made.hlim += 1
    made[TCP].chksum = None
    return bytes(made)


class Wire:
    """The router's end: what the load balancer has sent, and what is sent to it."""

    def __init__(self, joint: Joint) -> None:
        port = joint.topology.balancer.port
        tag = struct.pack("!H", joint.from_clients)
        self._link = _mac(BALANCER, DEVICE) + _mac(ROUTER, port)
        self._link += _TAGGED + tag if joint.from_clients else b""
        with in_netns(ROUTER):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._socket.bind((port, 3))
        self._socket.setblocking(False)  # noqa: FBT003 -- its only argument

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def sent(self) -> Iterator[Frame]:
        """What the load balancer has sent since the last time."""
        while True:
            try:
                raw, ancillary, _, sender = self._socket.recvmsg(2048, 256)
            except BlockingIOError:
                return
            if sender[2] == socket.PACKET_OUTGOING:
                continue
            (data,) = (each for level, _, each in ancillary if level == _SOL_PACKET)
            status, _, _, _, _, tag, _ = _AUXDATA.unpack(data)
            if status & _VLAN_VALID:
                raw = raw[:12] + _TAGGED + struct.pack("!H", tag) + raw[12:]
            yield Frame(raw)

    def put(self, packet: bytes) -> None:
        """Send the load balancer a client's packet."""
        self._socket.send(self._link + _ETHERTYPES[packet[0] >> 4] + packet)


def _mac(namespace: str, device: str) -> bytes:
    (shown,) = json.loads(run(namespace, ["ip", "-j", "link", "show", device]))
    return bytes.fromhex(shown["address"].replace(":", ""))


@contextmanager
def listening(joint: Joint) -> Iterator[Wire]:
    """Listen in the block."""
    with closing(Wire(joint)) as wire:
        yield wire


def wait_for(wire: Wire, wanted: bytes, shown: Callable[[Frame], bytes]) -> None:
    """Return when the load balancer has sent a frame that is shown as this."""
    seen: list[bytes] = []

    def came() -> bool:
        seen.extend(map(shown, wire.sent()))
        return wanted in seen

    with suppress(LabError):
        wait_until(came, seconds=TIMEOUT, what="it to come")
    assert wanted in seen, (wanted.hex(), [each.hex() for each in seen if each])
