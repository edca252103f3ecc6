# SPDX-License-Identifier: Apache-2.0
"""The decapsulating program against its oracle: packets that are unwrapped, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw
from tests.prog.decap.harness import (
    COMBINATIONS,
    PROTOCOLS,
    Rig,
    ether,
    inner,
    loaded,
    outer,
    tunnelled,
)
from tests.prog.decap.oracle import (
    CE,
    ECN,
    ECN_TABLE,
    ECT_0,
    ECT_1,
    NOT_ECT,
    UNWRAPPED,
    ones_complement_sum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
ECN_FIELDS = [NOT_ECT, ECT_0, ECT_1, CE]

# RFC 2473, section 5.1: may be encapsulated 4 times more.
ENCAPSULATION_LIMIT = HBHOptUnknown(otype=4, optdata=b"\x04")


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A program of this module's own."""
    with loaded() as rig:
        yield rig


def traffic_class(packet: bytes) -> int:
    """DSCP and ECN of an IP packet of either family."""
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2], "big") >> 4 & 0xFF


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_inner_packet_comes_out_as_it_went_in(rig: Rig, outside: int, inside: int) -> None:
    """Same MAC addresses, EtherType of the inner family, inner bytes unchanged."""
    packet = bytes(inner(inside))
    frame = bytes(ether() / outer(outside, inside) / Raw(packet))
    assert rig.expect(frame, UNWRAPPED) == frame[:12] + ETHERTYPES[inside] + packet


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
@pytest.mark.parametrize("outer_ecn", ECN_FIELDS)
@pytest.mark.parametrize("inner_ecn", ECN_FIELDS)
@pytest.mark.parametrize("dscp", [0, 46, 63])
def test_ecn_is_merged_and_dscp_stays(
    rig: Rig, outside: int, inside: int, outer_ecn: int, inner_ecn: int, dscp: int
) -> None:
    """RFC 6040's table decides the ECN field; the outer DSCP never gets in."""
    frame = bytes(
        ether()
        / outer(outside, inside, traffic_class=(63 - dscp) << 2 | outer_ecn)
        / inner(inside, traffic_class=dscp << 2 | inner_ecn)
    )
    merged = ECN_TABLE[inner_ecn][outer_ecn]
    if merged is None:
        rig.expect(frame, ECN)
        return
    packet = rig.expect(frame, UNWRAPPED)[14:]
    assert traffic_class(packet) == dscp << 2 | merged
    if inside == 4:
        assert ones_complement_sum(packet[:20]) == 0xFFFF


@pytest.mark.parametrize("inner_ecn", ECN_FIELDS)
@pytest.mark.parametrize("checksum", [0x0000, 0x0001, 0x1234, 0x7FFF, 0xFFFD, 0xFFFE, 0xFFFF])
def test_a_wrong_inner_checksum_stays_as_wrong_as_it_was(
    rig: Rig, inner_ecn: int, checksum: int
) -> None:
    """It is the kernel's to refuse: the update neither repairs nor hides anything."""
    packet = inner(4, traffic_class=inner_ecn, chksum=checksum)
    rig.check(bytes(ether() / outer(4, 4, traffic_class=CE) / packet))
    rig.check(bytes(ether() / outer(4, 4, traffic_class=ECT_1) / packet))


def test_every_right_checksum_is_updated_to_the_right_one(rig: Rig) -> None:
    """Identifications that walk the header's sum across all its carries."""
    for identification in range(0, 0x10000, 257):
        packet = inner(4, traffic_class=ECT_0, id=identification)
        out = rig.expect(bytes(ether() / outer(4, 4, traffic_class=CE) / packet), UNWRAPPED)
        assert ones_complement_sum(out[14:34]) == 0xFFFF


@pytest.mark.parametrize("words", range(1, 11))
@pytest.mark.parametrize("inside", [4, 6])
def test_outer_ipv4_options_are_taken_off_too(rig: Rig, words: int, inside: int) -> None:
    """All header lengths from 24 to 60 bytes."""
    packet = bytes(inner(inside))
    header = outer(4, inside, options=[b"\x01" * 4 * words])
    frame = bytes(ether() / header / Raw(packet))
    assert frame[14] == 0x45 + words
    assert rig.expect(frame, UNWRAPPED)[14:] == packet


@pytest.mark.parametrize("words", range(1, 11))
def test_inner_ipv4_options_stay(rig: Rig, words: int) -> None:
    """They are the kernel's to look at; the checksum over them is kept right."""
    packet = inner(4, traffic_class=ECT_0, options=[b"\x01" * 4 * words])
    out = rig.expect(bytes(ether() / outer(4, 4, traffic_class=CE) / packet), UNWRAPPED)
    assert ones_complement_sum(out[14 : 34 + 4 * words]) == 0xFFFF


def extensions() -> dict[str, Packet]:
    """Chains of extension headers that a tunnel's entry may put before what it carries."""
    destination = IPv6ExtHdrDestOpt(options=[ENCAPSULATION_LIMIT])
    long = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=30, optdata=bytes(250))] * 8)
    chain = IPv6ExtHdrHopByHop()
    for _ in range(6):
        chain /= IPv6ExtHdrDestOpt()
    return {
        "encapsulation limit": destination,
        "hop-by-hop": IPv6ExtHdrHopByHop(),
        "spent routing header": IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=0),
        "atomic fragment": IPv6ExtHdrFragment(offset=0, m=0, id=7),
        "hop-by-hop, routing, atomic fragment, destination": IPv6ExtHdrHopByHop()
        / IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=0)
        / IPv6ExtHdrFragment(offset=0, m=0, id=7)
        / destination,
        "2 kB of options": long,
        "seven headers": chain,
    }


@pytest.mark.parametrize("chain", extensions())
@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("vlan", [None, 7])
def test_outer_extension_headers_are_taken_off_too(
    rig: Rig, chain: str, inside: int, vlan: int | None
) -> None:
    """RFC 2473 and RFC 8200, section 4."""
    headers = extensions()[chain]
    packet = bytes(inner(inside))
    headers.lastlayer().nh = PROTOCOLS[inside]
    header = outer(6, inside)
    del header.nh
    frame = bytes(ether(vlan=vlan) / header / headers / Raw(packet))
    assert rig.expect(frame, UNWRAPPED).endswith(ETHERTYPES[inside] + packet)


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
@pytest.mark.parametrize(("vlan", "priority"), [(1, 0), (0, 5), (4094, 7)])
def test_a_tag_stays_with_the_inner_ethertype_behind_it(
    rig: Rig, outside: int, inside: int, vlan: int, priority: int
) -> None:
    """Tag control word included; VLAN 0 is a priority tag."""
    packet = bytes(inner(inside))
    link = ether(vlan=vlan, priority=priority)
    frame = bytes(link / outer(outside, inside) / Raw(packet))
    assert rig.expect(frame, UNWRAPPED) == frame[:16] + ETHERTYPES[inside] + packet


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_padding_of_the_link_layer_is_left_to_the_kernel(
    rig: Rig, outside: int, inside: int
) -> None:
    """The inner length field says where the packet ends; the frame keeps its padding."""
    packet = bytes(inner(inside, payload=b""))
    frame = bytes(ether() / outer(outside, inside) / Raw(packet)) + b"\xa5" * 30
    assert rig.expect(frame, UNWRAPPED)[14:] == packet + b"\xa5" * 30


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_room_left_inside_the_outer_packet_is_no_fault(rig: Rig, outside: int, inside: int) -> None:
    """The outer length may be larger than the inner one, never the reverse."""
    rig.expect(bytes(ether() / outer(outside, inside) / inner(inside) / Raw(b"more")), UNWRAPPED)
    packet = bytes(inner(inside))
    rig.expect(bytes(ether() / outer(outside, inside) / Raw(packet + b"more")), UNWRAPPED)


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_one_layer_comes_off_at_a_time(rig: Rig, outside: int, inside: int) -> None:
    """A tunnel in the tunnel is passed on as such, though it is for the same address."""
    nested = bytes(outer(outside, inside) / inner(inside))
    header = outer(outside, outside)
    assert rig.expect(bytes(ether() / header / Raw(nested)), UNWRAPPED)[14:] == nested


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_the_smallest_inner_packet_is_a_bare_header(rig: Rig, outside: int, inside: int) -> None:
    """Nothing has to be behind the inner IP header."""
    header = inner(inside)
    header.remove_payload()
    rig.expect(bytes(ether() / outer(outside, inside) / Raw(bytes(header))), UNWRAPPED)


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_an_inner_fragment_is_unwrapped(rig: Rig, outside: int, inside: int) -> None:
    """Only the outer packet has to be whole."""
    if inside == 4:
        packet = inner(4, flags="MF", frag=64)
    else:
        packet = inner(6)
        packet = (
            packet.__class__(**{**packet.fields, "nh": 44})
            / IPv6ExtHdrFragment(m=1, offset=64, nh=17)
            / UDP()
            / Raw(b"part")
        )
    rig.expect(bytes(ether() / outer(outside, inside) / packet), UNWRAPPED)


@pytest.mark.parametrize("size", [1, 100, 1400, 2800])
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_any_size_is_unwrapped_and_counted_in_bytes(
    rig: Rig, outside: int, inside: int, size: int
) -> None:
    """The byte counter takes the inner packet's length; the oracle says how much that is."""
    rig.expect(
        bytes(ether() / outer(outside, inside) / inner(inside, payload=bytes(size))), UNWRAPPED
    )


def test_an_address_removed_is_passed_again(rig: Rig) -> None:
    """And unwrapped for once more when it is put back."""
    frame = tunnelled(4, 4)
    rig.table.remove("192.0.2.11")
    try:
        run = rig.program.test_run(frame)
        assert run.data == frame
    finally:
        rig.table.add("192.0.2.11")
    rig.expect(frame, UNWRAPPED)


def test_a_tag_inside_is_not_looked_for(rig: Rig) -> None:
    """Only the link header has tags: bytes of the inner packet that look like one stay."""
    rig.expect(bytes(ether() / outer(4, 4) / inner(4, payload=bytes(Dot1Q()))), UNWRAPPED)
