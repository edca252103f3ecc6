# SPDX-License-Identifier: Apache-2.0
"""What packets are to become, by scapy, which makes the checksums itself; and which backend by."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from tests.prog.masquerade.oracle import fresh, header
from tests.unit.core.oracle_maglev import step, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scapy.packet import Packet

SEED = 0x546F7770617468
"""Every node's."""
FAMILIES = {4: 2, 6: 10}
SIZE = 251


def ports(packet: Packet) -> Packet:
    """The header of TCP or UDP."""
    return packet[TCP] if TCP in packet else packet[UDP]


def between(
    packet: Packet, source: tuple[str, int] | None, destination: tuple[str, int] | None
) -> Packet:
    """The packet with other ends; None: as it was."""
    copy = packet.copy()
    ip, transport = header(copy), ports(copy)
    if source:
        ip.src, transport.sport = source
    if destination:
        ip.dst, transport.dport = destination
    return fresh(copy)


def answer(packet: Packet, layers: Packet) -> Packet:
    """What comes back for a packet: from where it went, to where it came from."""
    ip, transport = header(packet), ports(packet)
    made = ip.__class__(src=ip.dst, dst=ip.src) / layers.copy()
    ports(made).sport, ports(made).dport = transport.dport, transport.sport
    return fresh(made)


def framed(packet: Packet, source: str, destination: str) -> bytes:
    """In a frame."""
    return bytes(Ether(src=source, dst=destination) / packet)


def backend(packet: Packet, backends: Sequence[str], *, by_client: bool = False) -> str:
    """Where a flow that is new goes, as a packet from outside would."""
    ip, transport = header(packet), ports(packet)
    source, destination = ip_address(ip.src), ip_address(ip.dst)
    family = FAMILIES[source.version]
    protocol = 6 if TCP in packet else 17
    if by_client:
        raw = source.packed if source.version == 6 else source.packed + bytes(4)
        words = [*struct.unpack(f"<{len(raw) // 8}Q", raw), family]
    else:
        both = struct.pack("!HHBBxx", transport.sport, transport.dport, protocol, family)
        raw = source.packed + destination.packed + both
        words = list(struct.unpack(f"<{len(raw) // 8}Q", raw))
    state = SEED
    for word in (*words, 0):
        state = step(state, word)
    slots = table([(ip_address(each).packed, 1) for each in backends], SIZE)
    return backends[slots[(state >> 32) * SIZE >> 32]]
