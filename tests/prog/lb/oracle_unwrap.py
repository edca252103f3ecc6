# SPDX-License-Identifier: Apache-2.0
"""What the load balancer must do with tunnels that end at it: both oracles, one after the other.

What the one for backends takes out of a tunnel the load balancer's judges as if it had come like
that, a hop further; it has to be for a VIP.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from tests.prog.decap import oracle as decap
from tests.prog.lb.oracle import NO_VIP, Outcome, World
from tests.prog.lb.oracle_parse import OTHER_PROTOCOL

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

MALFORMED, ECN, NO_HOP = "drop_unwrap_malformed", "drop_unwrap_ecn", "drop_ttl"
DROPS = {decap.MALFORMED: MALFORMED, decap.ECN: ECN, NO_HOP: NO_HOP}


@dataclass
class TunnelWorld(World):
    """A world with tunnels to ``tunnels``: in IP, and in what else is said."""

    tunnels: frozenset[Address] = frozenset()
    gre: bool = False
    ports: tuple[int, ...] = ()

    @classmethod
    def of(cls, world: World, *args: object) -> TunnelWorld:
        """The same world, with tunnels."""
        return cls(*(getattr(world, each.name) for each in fields(World)), *args)

    def judge(self, frame: bytes, ifindex: int) -> Outcome:
        """What happens to a frame; what is within one, if that is for a VIP."""
        came = super().judge(frame, ifindex)
        opened = self.opened(frame, came)
        if opened is None:
            return came
        if opened.verdict in DROPS:
            return Outcome(DROPS[opened.verdict], frame)
        return super().judge(opened.frame, ifindex)

    def opened(self, frame: bytes, came: Outcome | None = None) -> decap.Outcome | None:
        """What becomes of the outer header; None: the frame stays as it came."""
        verdict = came.verdict if came else super().judge(frame, 1).verdict
        if verdict not in {OTHER_PROTOCOL, NO_VIP}:
            return None
        opened = decap.unwrap(frame, self.tunnels, gre=self.gre, ports=self.ports)
        if opened.verdict in {decap.OTHER, decap.FRAGMENT}:
            return None
        destination = self._within(frame)
        if destination is not None and not self.is_vip(destination):
            return None
        return a_hop_further(opened) if opened.verdict == decap.UNWRAPPED else opened

    def _within(self, frame: bytes) -> Address | None:
        """Whom the packet within is for, None: it makes no sense to ask."""
        taken = {4, 41, 47, 17}
        _, ethertype, packet = decap.split_link(frame)
        outer, behind = decap.PARSERS[ethertype](packet, taken)
        if outer.sane:
            behind = decap.take_between(outer, behind, self.ports)
        if not outer.sane or len(behind) < {4: 20, 41: 40}[outer.protocol]:
            return None
        return IPv4Address(behind[16:20]) if outer.protocol == 4 else IPv6Address(behind[24:40])


def a_hop_further(opened: decap.Outcome) -> decap.Outcome:
    """With a hop less in its TTL (RFC 1812, 5.3.1) or hop limit, if there is one left."""
    link, ethertype, packet = decap.split_link(opened.frame)
    at = {0x0800: 8, 0x86DD: 7}[ethertype]
    if packet[at] <= 1:
        return replace(opened, verdict=NO_HOP)
    changed = bytearray(packet)
    changed[at] -= 1
    if ethertype == 0x0800:
        changed[10:12] = decap.checksum_like_before(packet, bytes(changed)).to_bytes(2, "big")
    return replace(opened, frame=link + bytes(changed))
