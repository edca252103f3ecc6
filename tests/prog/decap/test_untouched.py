# SPDX-License-Identifier: Apache-2.0
"""The decapsulating program against its oracle: what it passes as it came, and what it drops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q
from scapy.packet import Packet, Raw
from tests.prog.decap.harness import (
    COMBINATIONS,
    PROTOCOLS,
    TARGETS,
    Rig,
    ether,
    inner,
    loaded,
    moved,
    outer,
    tunnelled,
)
from tests.prog.decap.oracle import (
    FRAGMENT,
    MALFORMED,
    OTHER,
    UNWRAPPED,
    XDP_DROP,
    ones_complement_sum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A program of this module's own."""
    with loaded() as rig:
        yield rig


def other_frames() -> dict[str, Packet]:
    """Frames that are none of the program's business."""
    link, here4, here6 = ether(), TARGETS[4], TARGETS[6]
    return {
        "arp": link / ARP(pdst=here4),
        "unknown ethertype": ether(type=0x88B5) / Raw(bytes(60)),
        "udp to the address": link / IP(dst=here4) / UDP() / Raw(b"x"),
        "tcp to the address": link / IPv6(dst=here6) / TCP(),
        "gre to the address": link / IP(dst=here4) / GRE() / inner(4),
        "fragment of udp": link / IP(dst=here4, flags="MF") / UDP() / Raw(bytes(64)),
        "fragment of udp, IPv6": link / IPv6(dst=here6) / IPv6ExtHdrFragment(m=1) / UDP(),
        "icmp error that quotes a tunnel packet": link
        / IP(dst=here4)
        / ICMP(type=3, code=4)
        / outer(4, 4)
        / inner(4),
        "tunnel to another IPv4 address": link / IP(dst="192.0.2.12") / inner(4),
        "tunnel to another IPv6 address": link / IPv6(dst="2001:db8:2::12") / inner(6),
        "the IPv4 address's bytes as an IPv6 address": link / IPv6(dst=f"::{here4}") / inner(6),
        "IPv4-mapped": link / IPv6(dst=f"::ffff:{here4}") / inner(6),
        "from the address, not to it": link / IP(src=here4, dst="192.0.2.12") / inner(4),
        "two tags": link / Dot1Q(vlan=1) / Dot1Q(vlan=2) / outer(4, 4) / inner(4),
        "service tag": link / Dot1AD(vlan=1) / outer(4, 4) / inner(4),
        "mpls": link / MPLS() / outer(4, 4) / inner(4),
        "ethertype IPv4, version 6": ether(type=0x0800) / outer(6, 6) / inner(6),
        "ethertype IPv6, version 4": ether(type=0x86DD) / outer(4, 4) / inner(4),
        "segments left": link
        / IPv6(dst=here6)
        / IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=1, nh=4)
        / inner(4),
        "authentication header": link / IPv6(dst=here6) / AH(nh=41) / inner(6),
        "no next header": link / IPv6(dst=here6, nh=59),
    }


@pytest.mark.parametrize("kind", other_frames())
def test_what_is_no_tunnel_packet_for_an_address_passes_as_it_came(rig: Rig, kind: str) -> None:
    """Byte for byte, counted as pass_other."""
    frame = bytes(other_frames()[kind])
    assert rig.expect(frame, OTHER) == frame


def test_an_endless_chain_of_extension_headers_is_the_kernels(rig: Rig) -> None:
    """Eight headers are one more than the program follows."""
    packet = IPv6(dst=TARGETS[6])
    for _ in range(8):
        packet /= IPv6ExtHdrDestOpt()
    packet.lastlayer().nh = PROTOCOLS[4]
    rig.expect(bytes(ether() / packet / Raw(bytes(inner(4)))), OTHER)


@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("vlan", [None, 9])
@pytest.mark.parametrize(
    ("flags", "offset"), [("MF", 0), ("MF", 10), (0, 10), ("DF+MF", 0), (0, 8191)]
)
def test_outer_ipv4_fragments_pass_to_be_reassembled(
    rig: Rig, inside: int, vlan: int | None, flags: str | int, offset: int
) -> None:
    """First, middle and last ones, as they came."""
    header = outer(4, inside, flags=flags, frag=offset)
    rig.expect(bytes(ether(vlan=vlan) / header / Raw(bytes(inner(inside)))), FRAGMENT)


@pytest.mark.parametrize("flags", ["DF", "evil", "DF+evil"])
def test_flags_that_are_no_fragments_do_not_matter(rig: Rig, flags: str) -> None:
    """Don't fragment, and the reserved one."""
    rig.expect(bytes(ether() / outer(4, 4, flags=flags) / inner(4)), UNWRAPPED)


@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize(("more", "offset"), [(1, 0), (1, 10), (0, 10), (0, 8191)])
@pytest.mark.parametrize("before", [False, True])
def test_outer_ipv6_fragments_pass_to_be_reassembled(
    rig: Rig, inside: int, more: int, offset: int, *, before: bool
) -> None:
    """With and without a destination options header before the fragment header."""
    packet = IPv6(dst=TARGETS[6])
    if before:
        packet /= IPv6ExtHdrDestOpt()
    packet /= IPv6ExtHdrFragment(m=more, offset=offset, nh=PROTOCOLS[inside])
    rig.expect(bytes(ether() / packet / Raw(bytes(inner(inside)))), FRAGMENT)


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
@pytest.mark.parametrize("vlan", [None, 3])
def test_every_truncation_is_passed_or_dropped_and_counted(
    rig: Rig, outside: int, inside: int, vlan: int | None
) -> None:
    """Nothing before the outer header is whole, a drop from there on."""
    frame = bytes(ether(vlan=vlan) / outer(outside, inside) / inner(inside))
    whole = (14 if vlan is None else 18) + {4: 20, 6: 40}[outside]
    for length in range(14, len(frame)):
        rig.expect(frame[:length], OTHER if length < whole else MALFORMED)


def test_every_truncation_of_options_and_extension_headers(rig: Rig) -> None:
    """A chain cut off before it names a protocol may be anyone's: it passes."""
    options = outer(4, 6, options=[b"\x01" * 12])
    chain = IPv6(dst=TARGETS[6]) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(nh=4)
    for headers in (options, chain):
        inside = 6 if headers is options else 4
        frame = bytes(ether() / headers / Raw(bytes(inner(inside))))
        for length in range(14, len(frame)):
            rig.check(frame[:length])


def rewritten(frame: bytes, offset: int, *values: int, checksum: bool = False) -> bytes:
    """A frame with bytes replaced; `checksum`: that of the outer IPv4 header made right again."""
    changed = bytearray(frame)
    changed[offset : offset + len(values)] = bytes(values)
    if checksum:
        header = IP(bytes(changed[14:34]))
        del header.chksum
        changed[14:34] = bytes(header)[:20]
    return bytes(changed)


@pytest.mark.parametrize("inside", [4, 6])
def test_a_wrong_outer_ipv4_header_is_dropped(rig: Rig, inside: int) -> None:
    """Header length, total length and checksum, which the kernel never gets to see."""
    frame = tunnelled(4, inside)
    total = len(frame) - 14
    rig.expect(frame, UNWRAPPED)
    for ihl in range(5):
        rig.expect(rewritten(frame, 14, 0x40 | ihl), MALFORMED)
    for wrong in (0, 19, 20, total - 1, total + 1, 0xFFFF):
        length = wrong.to_bytes(2, "big")
        rig.expect(rewritten(frame, 16, *length, checksum=True), MALFORMED)
    rig.expect(rewritten(frame, 24, frame[24] ^ 1), MALFORMED)
    rig.expect(rewritten(frame, 22, frame[22] ^ 1), MALFORMED)


def test_an_outer_ipv4_header_shorter_than_its_destination_is_dropped(rig: Rig) -> None:
    """Though what it leaves looks like a packet: 69.0.0.28 begins an IPv4 header of 28 bytes."""
    address = "69.0.0.28"
    header = IP(src="192.0.2.1", dst=address, proto=4, ihl=4, len=16 + 28, chksum=0)
    packet = bytearray(bytes(header)[:20] + bytes(24))
    right = 0xFFFF - ones_complement_sum(bytes(packet[:16]))
    packet[10:12] = right.to_bytes(2, "big")
    rig.table.add(address)
    try:
        before = rig.table.counters()
        run = rig.program.test_run(bytes(ether(type=0x0800)) + bytes(packet))
        assert run.retval == XDP_DROP
        assert moved(before, rig.table.counters()) == {"drop_malformed": 1}
    finally:
        rig.table.remove(address)


def test_a_wrong_checksum_in_a_header_with_options_is_dropped(rig: Rig) -> None:
    """The sum goes over the options too, to the last of them."""
    frame = bytes(ether() / outer(4, 4, options=[b"\x01" * 40]) / inner(4))
    rig.expect(frame, UNWRAPPED)
    for offset in range(34, 74):
        rig.expect(rewritten(frame, offset, 2), MALFORMED)


@pytest.mark.parametrize("inside", [4, 6])
def test_a_wrong_outer_ipv6_length_is_dropped(rig: Rig, inside: int) -> None:
    """Longer than the frame, or too short for what is inside."""
    frame = tunnelled(6, inside)
    payload = len(frame) - 54
    for wrong in (0, 1, payload - 1, payload + 1, 0xFFFF):
        rig.expect(rewritten(frame, 18, *wrong.to_bytes(2, "big")), MALFORMED)


def test_extension_headers_longer_than_the_payload_are_dropped(rig: Rig) -> None:
    """By the outer length field, and by the frame's end."""
    packet = IPv6(dst=TARGETS[6]) / IPv6ExtHdrDestOpt(nh=4) / Raw(bytes(inner(4)))
    frame = bytes(ether() / packet)
    rig.expect(frame, UNWRAPPED)
    rig.expect(rewritten(frame, 18, 0, 7), MALFORMED)
    rig.expect(rewritten(frame, 55, 255), MALFORMED)


@pytest.mark.parametrize("outside", [4, 6])
def test_an_inner_packet_of_another_version_is_dropped(rig: Rig, outside: int) -> None:
    """The tunnel protocol says what has to be inside; only that is taken."""
    start = 14 + {4: 20, 6: 40}[outside]
    for inside in (4, 6):
        frame = tunnelled(outside, inside)
        for version in range(16):
            first = version << 4 | frame[start] & 15
            expected = UNWRAPPED if version == inside else MALFORMED
            rig.expect(rewritten(frame, start, first), expected)


@pytest.mark.parametrize("outside", [4, 6])
def test_an_inner_ipv4_header_that_lies_is_dropped(rig: Rig, outside: int) -> None:
    """Header length below 20 or beyond the packet, total length below or beyond what is there."""
    frame = tunnelled(outside, 4)
    start = 14 + {4: 20, 6: 40}[outside]
    total = len(frame) - start
    for ihl in (0, 1, 4, 15):
        rig.expect(rewritten(frame, start, 0x40 | ihl), MALFORMED)
    for wrong in (0, 19, total + 1, 0xFFFF):
        rig.expect(rewritten(frame, start + 2, *wrong.to_bytes(2, "big")), MALFORMED)
    padded = frame + bytes(20)
    rig.expect(rewritten(padded, start + 2, *(total + 1).to_bytes(2, "big")), MALFORMED)


@pytest.mark.parametrize("outside", [4, 6])
def test_an_inner_ipv6_length_beyond_the_outer_one_is_dropped(rig: Rig, outside: int) -> None:
    """Also when padding of the frame would cover it."""
    frame = tunnelled(outside, 6)
    start = 14 + {4: 20, 6: 40}[outside]
    payload = len(frame) - start - 40
    for wrong in (payload + 1, 0xFFFF):
        rig.expect(rewritten(frame + bytes(8), start + 4, *wrong.to_bytes(2, "big")), MALFORMED)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("inside", [4, 6])
def test_an_outer_header_with_nothing_behind_it_is_dropped(
    rig: Rig, outside: int, inside: int
) -> None:
    """A bare outer header, right in itself."""
    rig.expect(bytes(ether() / outer(outside, inside)), MALFORMED)
