# SPDX-License-Identifier: Apache-2.0
"""Packets in fragments through a load balancer that translates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scapy.layers.inet import TCP
from scapy.packet import Packet, Raw
from tests.prog.lb.frames import PORT, TRANSPORTS, ether, ip
from tests.prog.lb.oracle import TX
from tests.prog.lb.oracle_parse import Flow, parse
from tests.prog.lb.wire_fragments import cut, put_together
from tests.prog.snat.oracle import NatOutcome
from tests.prog.snat.oracle_bytes import translated, transport_checksum

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address
    from tests.prog.snat.harness import NatRig

PIECE = 600
"""Bytes of a packet in each of its fragments."""
LIFE = 4000
"""Of what a first fragment leaves, in 2^20 ns."""


def forget(nat: NatRig) -> None:
    """Have the table of fragments be empty."""
    nat.fragments.ways["ref"] = 0
    nat.world.fragments.clear()


def pattern(size: int) -> bytes:
    """Bytes that differ from their neighbours."""
    return bytes(at * 37 % 251 for at in range(size))


def whole(
    version: int,
    protocol: int = 17,
    *,
    size: int = 1501,
    ends: Flow | None = None,
    sport: int = 40000,
    flags: str = "A",
    source: Address | None = None,
    vip: Address | None = None,
    headers: Packet | None = None,
    hops: int = 64,
    **fields: Any,
) -> bytes:
    """An IP packet of a client's or, between other ends, of a backend's."""
    ports = {"sport": sport, "dport": PORT}
    if ends is not None:
        source, vip, protocol = ends.source, ends.destination, ends.protocol
        ports = {"sport": ends.source_port, "dport": ends.destination_port}
    transport = TRANSPORTS[protocol](**ports)
    if isinstance(transport, TCP):
        transport.flags = flags
    fields["ttl" if version == 4 else "hlim"] = hops
    packet = ip(version, source=source, vip=vip, **fields)
    if headers is not None:
        packet /= headers
    return bytes(packet / transport / Raw(pattern(size)))


def framed(packet: bytes, vlan: int | None = None) -> bytes:
    """A frame that comes in with a packet."""
    ethertype = {4: 0x0800, 6: 0x86DD}[packet[0] >> 4]
    link = ether(vlan=vlan)
    link.lastlayer().type = ethertype
    return bytes(link) + packet


def pieces(packet: bytes, number: int = 1, vlan: int | None = None) -> list[bytes]:
    """The frames of a packet's fragments, in order."""
    return [framed(each, vlan) for each in cut(packet, PIECE, number)]


def behind_link(outcome: Outcome) -> bytes:
    """The IP packet that was sent."""
    return outcome.frame[18 if outcome.frame[12:14] == b"\x81\x00" else 14 :]


def entry_ends(outcome: Outcome) -> tuple[Flow, Flow]:
    """A flow as its backend has it, and the answers as the client has them."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    sent, back = outcome.entry.flow, outcome.entry.reply
    there = Flow(
        back.destination, back.source, back.destination_port, back.source_port, sent.protocol
    )
    return there, Flow(
        sent.destination,
        sent.source,
        sent.destination_port,
        sent.source_port,
        sent.protocol,
    )


def assert_whole(nat: NatRig, outcomes: list[Outcome], packet: bytes, ends: Flow) -> None:
    """What was sent is the packet between those ends, with a checksum that is right."""
    came = put_together([behind_link(each) for each in outcomes])
    expected = bytearray(translated(parse(framed(packet)), ends, nat.world.table.seed))
    if packet[0] >> 4 == 4:
        # The identification is the fragments' own, and their header has its own checksum.
        expected[4:6] = came[4:6]
        expected[10:12] = came[10:12]
    assert came == bytes(expected)
    at = transport_at(came)
    segment = came[at:]
    where = at + {6: 16, 17: 6}[ends.protocol]
    found = int.from_bytes(came[where : where + 2], "big")
    assert found == transport_checksum(segment, ends)


def transport_at(packet: bytes) -> int:
    """Where the transport header of a whole packet begins."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    kind, at = packet[6], 40
    while kind in {0, 43, 60}:
        kind, at = packet[at], at + (packet[at + 1] + 1) * 8
    return at


def talk(nat: NatRig, packet: bytes, number: int = 1, vlan: int | None = None) -> Outcome:
    """Send a client's packet in fragments, and an answer of the same size; both arrive whole."""
    sent = [nat.expect(each, TX) for each in pieces(packet, number, vlan)]
    there, back = entry_ends(sent[0])
    assert_whole(nat, sent, packet, there)
    size = len(packet) - transport_at(packet) - {6: 20, 17: 8}[there.protocol]
    answered = whole(packet[0] >> 4, size=size, ends=reversed_ends(there))
    came = [nat.expect(each, TX) for each in pieces(answered, number, vlan)]
    assert_whole(nat, came, answered, back)
    return sent[0]


def reversed_ends(ends: Flow) -> Flow:
    """The other side's."""
    return Flow(
        ends.destination, ends.source, ends.destination_port, ends.source_port, ends.protocol
    )
