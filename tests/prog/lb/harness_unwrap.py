# SPDX-License-Identifier: Apache-2.0
"""A load balancer that tunnels end at, and frames in tunnels to it."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw
from tests.prog.decap.oracle import UNWRAPPED
from tests.prog.lb.frames import CLIENTS, ether
from tests.prog.lb.harness import Rig, rigged
from tests.prog.lb.network import IN
from tests.prog.lb.oracle_unwrap import TunnelWorld

from towpath.model import Unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome

ENDS = {4: ip_address("192.0.2.200"), 6: ip_address("2001:db8:2::200")}
PORTS = (6080, 5555)
KINDS = ("ipip", "gre", "fou", "gue0")
CARRIED = {4: 4, 6: 41}
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
ALL = Unwrap(tuple(ENDS.values()), gre=True, udp_ports=PORTS)


class TunnelRig(Rig):
    """Also compares what was counted for the tunnels' ends."""

    def __init__(self, rig: Rig, unwrap: Unwrap) -> None:
        self.__dict__.update(rig.__dict__)
        ends = frozenset(unwrap.addresses)
        self.world = TunnelWorld.of(self.world, ends, unwrap.gre, unwrap.udp_ports)

    def check(self, frame: bytes, device: str = IN) -> Outcome:
        """The same, and what was unwrapped for which address."""
        assert isinstance(self.world, TunnelWorld)
        opened = self.world.opened(frame)
        before = self.unwrapped()
        outcome = super().check(frame, device)
        after = self.unwrapped()
        moved = {
            end: (after[end][0] - before[end][0], after[end][1] - before[end][1])
            for end in after
            if after[end] != before[end]
        }
        expected = {}
        if opened is not None and opened.verdict == UNWRAPPED:
            expected = {opened.destination: (1, opened.inner_length)}
        assert moved == expected
        return outcome

    def unwrapped(self) -> dict[Any, tuple[int, int]]:
        """Packets and bytes by tunnels' end."""
        return {each.address: (each.packets, each.bytes) for each in self.balancer.unwrapped()}


@contextmanager
def tunnelled(net: Network, unwrap: Unwrap = ALL, **options: Any) -> Iterator[TunnelRig]:
    """A load balancer that unwraps."""
    with rigged(net, unwrap=unwrap, **options) as made:
        yield TunnelRig(made, unwrap)


def hops(family: int, left: int) -> dict[str, Any]:
    """The field of an IP header that says how many hops are left."""
    return {{4: "ttl", 6: "hlim"}[family]: left}


def outer(family: int, **fields: Any) -> Packet:
    """An outer IP header to the load balancer, or another ``end``; with DSCP and ECN."""
    traffic_class = fields.pop("traffic_class", 0)
    source, end = str(CLIENTS[family]), str(fields.pop("end", ENDS[family]))
    if family == 4:
        return IP(src=source, dst=end, tos=traffic_class, **fields)
    return IPv6(src=source, dst=end, tc=traffic_class, **fields)


def wrapped(
    frame: bytes, kind: str = "ipip", outside: int = 4, *, vlan: int | None = None, **fields: Any
) -> bytes:
    """An untagged frame's packet in a tunnel. ``fields``: of the outer IP header."""
    inside = 4 if frame[12:14] == b"\x08\x00" else 6
    header, packet = outer(outside, **fields), Raw(frame[14:])
    if kind == "ipip":
        header.setfieldval("proto" if outside == 4 else "nh", CARRIED[inside])
        return bytes(ether(vlan=vlan) / header / packet)
    if kind == "gre":
        return bytes(ether(vlan=vlan) / header / GRE(proto=ETHERTYPES[inside]) / packet)
    udp = UDP(sport=50000, dport=PORTS[0], chksum=0)
    if kind == "gue0":
        udp /= Raw(bytes((1, CARRIED[inside], 0, 0)) + b"data")
    return bytes(ether(vlan=vlan) / header / udp / packet)
