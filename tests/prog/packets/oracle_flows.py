# SPDX-License-Identifier: Apache-2.0
"""What is to become of any packet of a pod's, in plain Python: dictionaries of services and flows.

Packets are packed anew, checksums included. It shares no code with Towpath, nor with scapy.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from tests.prog.masquerade.oracle_flows import ACK, RST, SYN, TCP, Address, Packet
from tests.unit.core.oracle_maglev import step, table

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED, SIZE = 0x546F7770617468, 251
FIRST, LAST = 1024, 15999
_FAMILIES = {4: 2, 6: 10}

Place = tuple[str, int, Address, int, Address, int]
"""Device, protocol, an end of the pod's, an end that it talks to."""


class Offer(NamedTuple):
    """A service's backends."""

    backends: tuple[str, ...]
    port: int
    """Theirs."""


class Way(NamedTuple):
    """Where a flow goes, and by which port of the pod's."""

    backend: Address
    backend_port: int
    port: int


@dataclass
class Expected:
    """What is to become of a packet."""

    verdict: str
    packet: Packet
    begun: bool = False
    open_port: bool = False
    """The pod's port is yet to be seen: that of ``packet`` doesn't count."""


@dataclass
class Oracle:
    """The node's state."""

    offers: Mapping[tuple[str, int, int], Offer]
    """By address, port and protocol."""
    flows: dict[Place, Way] = field(default_factory=dict)
    seen: dict[Place, Place] = field(default_factory=dict)
    """Flows by what their backends see."""

    def out(self, packet: Packet, device: str) -> Expected:
        """A pod's."""
        offer = self.offers.get((str(packet.destination), packet.dport, packet.protocol))
        place = _place(packet, device)
        if offer is None:
            begins = packet.protocol != TCP or packet.flags & (SYN | ACK | RST) == SYN
            flow = self.seen.pop(place, None) if begins else None
            if flow is not None:
                del self.flows[flow]
            return Expected("pass_no_service", packet)
        if place in self.flows:
            return Expected("balanced", self._sent(packet, self.flows[place]))
        if packet.protocol == TCP and packet.flags & RST:
            return Expected("drop_no_flow", packet)
        way = Way(ip_address(_choose(packet, offer.backends)), offer.port, packet.sport)
        taken = (device, packet.protocol, packet.source, packet.sport, *way[:2]) in self.seen
        if not taken:
            self.learn(packet, device, way)
        return Expected("balanced", self._sent(packet, way), begun=True, open_port=taken)

    def learn(self, packet: Packet, device: str, way: Way) -> None:
        """A flow goes there. AssertionError: with a port that it may not have."""
        seen = (device, packet.protocol, packet.source, way.port, *way[:2])
        assert seen not in self.seen
        assert way.port == packet.sport or FIRST <= way.port <= LAST
        place = _place(packet, device)
        self.flows[place], self.seen[seen] = way, place

    def to_pod(self, packet: Packet, device: str) -> Expected:
        """What a pod is sent."""
        ends = (packet.destination, packet.dport, packet.source, packet.sport)
        flow = self.seen.get((device, packet.protocol, *ends))
        if flow is None:
            return Expected("pass_no_flow", packet)
        _, _, _, port, vip, vip_port = flow
        return Expected("restored", replace(packet, source=vip, sport=vip_port, dport=port))

    def _sent(self, packet: Packet, way: Way) -> Packet:
        return replace(packet, destination=way.backend, dport=way.backend_port, sport=way.port)


def _place(packet: Packet, device: str) -> Place:
    ends = (packet.source, packet.sport, packet.destination, packet.dport)
    return (device, packet.protocol, *ends)


def _choose(packet: Packet, backends: tuple[str, ...]) -> str:
    """By the hash of the flow, as packets from outside are."""
    family = _FAMILIES[packet.source.version]
    ports = struct.pack("!HHBBxx", packet.sport, packet.dport, packet.protocol, family)
    raw = packet.source.packed + packet.destination.packed + ports
    state = SEED
    for word in (*struct.unpack(f"<{len(raw) // 8}Q", raw), 0):
        state = step(state, word)
    slots = table([(ip_address(each).packed, 1) for each in backends], SIZE)
    return backends[slots[(state >> 32) * SIZE >> 32]]
