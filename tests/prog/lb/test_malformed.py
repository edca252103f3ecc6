# SPDX-License-Identifier: Apache-2.0
"""Frames cut short, or with nonsense in them: nothing is read beyond their end."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP
from scapy.packet import Raw
from tests.prog.lb.frames import VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.lb.oracle_parse import MALFORMED, NOT_IP

from towpath.model import Protocol


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family, for TCP and for UDP."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )


# ---- Cut short -----------------------------------------------------------------------------------

WHOLE = {
    "ipv4 tcp": frame(4, 6),
    "ipv4 udp": frame(4, 17),
    "ipv4 options": bytes(ether() / ip(4, options=[IPOption_NOP()] * 40) / segment()),
    "ipv4 tagged": frame(4, 6, vlan=7),
    "ipv6 tcp": frame(6, 6),
    "ipv6 udp": frame(6, 17),
    "ipv6 tagged": frame(6, 17, vlan=7),
    "ipv6 extensions": bytes(
        ether()
        / ip(6)
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrRouting(segleft=0)
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrFragment(id=7)
        / segment(17)
    ),
    "icmp": bytes(ether() / ip(4) / ICMP()),
    "icmpv6": bytes(ether() / ip(6) / ICMPv6EchoRequest()),
    "arp": bytes(ether() / ARP()),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_short_at_every_length(rig: Rig, kind: str) -> None:
    """A frame that ends before its headers say is never balanced; the kernel may judge it."""
    whole = WHOLE[kind]
    for length in range(14, len(whole)):
        outcome = rig.check(whole[:length])
        assert outcome.verdict in {MALFORMED, NOT_IP}
        assert outcome.frame == whole[:length]


@pytest.mark.parametrize("kind", WHOLE)
def test_headers_that_promise_less_than_there_is(rig: Rig, kind: str) -> None:
    """Every value of the length fields, on a frame that has all its bytes."""
    whole = bytearray(WHOLE[kind])
    at = 18 if whole[12:14] == b"\x81\x00" else 14
    field = at + (2 if whole[at] >> 4 == 4 else 4)
    for length in range(len(whole) + 2):
        whole[field : field + 2] = length.to_bytes(2, "big")
        rig.check(bytes(whole))
    assert rig.seen[MALFORMED]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_a_transport_header_cut_short_by_the_length_field(
    rig: Rig, family: int, protocol: int
) -> None:
    """Ports alone are no segment: what there is of it passes to the kernel."""
    smallest = 20 if protocol == 6 else 8
    for size in range(smallest + 1):
        packet = ip(4, proto=protocol) if family == 4 else ip(6, nh=protocol)
        raw = bytes(segment(protocol))[:size]
        rig.expect(
            bytes(ether() / packet / Raw(raw)) + bytes(60), TX if size == smallest else MALFORMED
        )


# ---- Nonsense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("version", range(16))
def test_only_the_version_that_the_ethertype_says(rig: Rig, family: int, version: int) -> None:
    """IPv6 in a frame that says IPv4 is neither."""
    made = bytearray(frame(family))
    made[14] = version << 4 | made[14] & 15
    rig.expect(bytes(made), TX if version == family else MALFORMED)


@pytest.mark.parametrize("words", range(5))
def test_an_ipv4_header_shorter_than_one(rig: Rig, words: int) -> None:
    """Fewer than 20 bytes."""
    made = bytearray(frame(4))
    made[14] = 0x40 | words
    rig.expect(bytes(made), MALFORMED)


@pytest.mark.parametrize("words", range(6, 16))
def test_an_ipv4_header_longer_than_its_packet(rig: Rig, words: int) -> None:
    """Options that the total length doesn't cover, though the frame has the bytes."""
    made = bytearray(frame(4, payload=b"") + bytes(64))
    made[14] = 0x40 | words
    made[16:18] = (words * 4 - 1).to_bytes(2, "big")
    rig.expect(bytes(made), MALFORMED)


@pytest.mark.parametrize("excess", [1, 2, 1000, 60000])
@pytest.mark.parametrize("family", [4, 6])
def test_a_length_beyond_the_frame(rig: Rig, family: int, excess: int) -> None:
    """One byte more than came is as bad as thousands."""
    made = bytearray(frame(family))
    field = 16 if family == 4 else 18
    length = int.from_bytes(made[field : field + 2], "big") + excess
    made[field : field + 2] = length.to_bytes(2, "big")
    rig.expect(bytes(made), MALFORMED)


def test_a_jumbogram(rig: Rig) -> None:
    """RFC 2675's length of 0 leaves no room for a transport header."""
    made = bytearray(frame(6))
    made[18:20] = b"\0\0"
    rig.expect(bytes(made), MALFORMED)
