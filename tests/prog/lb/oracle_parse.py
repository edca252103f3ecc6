# SPDX-License-Identifier: Apache-2.0
"""What the load balancer must see in a frame, said a second time in plain Python.

Written from the RFCs (791, 8200, 6946, 802.1Q) and from what the verdicts in the ABI say they are
for. `parse` returns the packet, or raises `Leave` with the name of the verdict that ends the parse.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

NOT_IP = "pass_not_ip"
OTHER_PROTOCOL = "pass_protocol"
FRAGMENT = "pass_fragment"
MALFORMED = "pass_malformed"
QINQ = "pass_qinq"

TAGS = (0x8100, 0x88A8)
"""802.1Q's and 802.1ad's."""
TCP, UDP = 6, 17
MIN_TRANSPORT = {TCP: 20, UDP: 8}
HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
MAX_EXTENSIONS = 7  # with an eighth the packet is left alone, whatever follows


class Leave(Exception):  # noqa: N818 - not an error: the parse is over
    """The verdict is known before the end of the parse."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True)
class Flow:
    """The 5-tuple; the family is the addresses'."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    protocol: int


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet, whole and no fragment."""

    tag: int  # tag control word, 0: none, or one that says nothing
    behind_link: bytes  # the IP packet and whatever padding follows it
    length: int  # of the IP packet, as its header says
    traffic_class: int
    dont_fragment: bool | None  # None: IPv6, which routers never fragment
    identification: int
    flow: Flow
    checksum_at: int = 0
    """Of a later fragment: where TCP's checksum is in what was cut, if the first one lacks it."""


def parse(frame: bytes) -> Packet:
    """The packet in a frame. Leave: the frame isn't one to be balanced."""
    tag, ethertype, rest = split_link(frame)
    if ethertype == 0x0800:
        return parse_ipv4(tag, rest)
    if ethertype == 0x86DD:
        return parse_ipv6(tag, rest)
    if ethertype in TAGS:
        raise Leave(QINQ)
    # Nothing has EtherType 0: such a frame says nothing at all.
    raise Leave(NOT_IP if ethertype else MALFORMED)


def split_link(frame: bytes) -> tuple[int, int, bytes]:
    """Tag control word, EtherType, and what is behind them. Only one tag is looked behind."""
    if len(frame) < 14:
        raise Leave(MALFORMED)
    if frame[12:14] != b"\x81\x00":
        return 0, number(frame[12:14]), frame[14:]
    if len(frame) < 18:
        raise Leave(MALFORMED)
    return number(frame[14:16]), number(frame[16:18]), frame[18:]


def number(raw: bytes) -> int:
    """Network order."""
    return int.from_bytes(raw, "big")


def parse_ipv4(tag: int, rest: bytes) -> Packet:
    """RFC 791."""
    if len(rest) < 20:
        raise Leave(MALFORMED)
    version, header = rest[0] >> 4, (rest[0] & 15) * 4
    total = number(rest[2:4])
    if version != 4 or not 20 <= header <= total <= len(rest):
        raise Leave(MALFORMED)
    flags = number(rest[6:8])
    if flags & 0x2000 or flags & 0x1FFF:
        raise Leave(FRAGMENT)
    source, destination = IPv4Address(rest[12:16]), IPv4Address(rest[16:20])
    return Packet(
        tag=tag,
        behind_link=rest,
        length=total,
        traffic_class=rest[1],
        dont_fragment=bool(flags & 0x4000),
        identification=number(rest[4:6]),
        flow=transport(rest[9], source, destination, rest[header:total]),
    )


def parse_ipv6(tag: int, rest: bytes) -> Packet:
    """RFC 8200."""
    if len(rest) < 40 or rest[0] >> 4 != 6:
        raise Leave(MALFORMED)
    total = 40 + number(rest[4:6])
    if total > len(rest):
        raise Leave(MALFORMED)
    protocol, header = walk_extensions(rest)
    if header > total:
        raise Leave(MALFORMED)
    source, destination = IPv6Address(rest[8:24]), IPv6Address(rest[24:40])
    return Packet(
        tag=tag,
        behind_link=rest,
        length=total,
        traffic_class=(number(rest[:2]) >> 4) & 0xFF,
        dont_fragment=None,
        identification=0,
        flow=transport(protocol, source, destination, rest[header:total]),
    )


def walk_extensions(rest: bytes) -> tuple[int, int]:
    """The first header that is none of those walked past, and where it begins."""
    kind, at = rest[6], 40
    for _ in range(MAX_EXTENSIONS + 1):
        if kind not in (HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION):
            return kind, at
        size = 8 if kind == FRAGMENT_HEADER else 4  # what is read of it
        if len(rest) < at + size:
            raise Leave(MALFORMED)
        if kind == ROUTING and rest[at + 3]:
            raise Leave(OTHER_PROTOCOL)  # segments left: this isn't the last destination
        if kind == FRAGMENT_HEADER and number(rest[at + 2 : at + 4]) & 0xFFF9:
            raise Leave(FRAGMENT)  # RFC 6946: neither offset nor more is a whole packet
        length = 8 if kind == FRAGMENT_HEADER else (rest[at + 1] + 1) * 8
        kind, at = rest[at], at + length
    raise Leave(OTHER_PROTOCOL)


def transport(protocol: int, source: Address, destination: Address, segment: bytes) -> Flow:
    """The flow that a segment or datagram belongs to; its header must be there whole."""
    if protocol not in MIN_TRANSPORT:
        raise Leave(OTHER_PROTOCOL)
    if len(segment) < MIN_TRANSPORT[protocol]:
        raise Leave(MALFORMED)
    return Flow(source, destination, number(segment[:2]), number(segment[2:4]), protocol)


# ---- In a packet that has been parsed ------------------------------------------------------------


@dataclass(frozen=True)
class Fragment:
    """What an IP packet says of itself that is a part of one."""

    id_at: int
    id_size: int
    offset: int  # in 8 bytes


def fragment_of(raw: bytes) -> Fragment | None:
    """None: the packet is whole. RFC 791; RFC 8200, 4.5, and 6946 for those that only look so."""
    if raw[0] >> 4 == 4:
        flags = number(raw[6:8])
        return Fragment(4, 2, flags & 0x1FFF) if flags & 0x3FFF else None
    kind, at = raw[6], 40
    while kind in {0, 43, 60, FRAGMENT_HEADER}:
        if kind != FRAGMENT_HEADER:
            kind, at = raw[at], at + (raw[at + 1] + 1) * 8
            continue
        flags = number(raw[at + 2 : at + 4])
        if flags & 0xFFF9:
            return Fragment(at + 4, 4, flags >> 3)
        kind, at = raw[at], at + 8
    return None


def header_length(kind: int, raw: bytes) -> int:
    """Of one that is walked past, from its first bytes: RFC 8200, 4.2 to 4.6; RFC 4302, 2.2."""
    if kind == AUTHENTICATION:
        return (raw[1] + 2) * 4
    return 8 if kind == FRAGMENT_HEADER else (raw[1] + 1) * 8


def transport_offset(packet: Packet) -> int:
    """Where the transport header begins in the IP packet, which is none of the later fragments."""
    raw = packet.behind_link
    kind, at, walked = raw[6], 40, {HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION}
    if raw[0] >> 4 == 4:
        kind, at, walked = raw[9], (raw[0] & 15) * 4, set()
    while kind in walked | {AUTHENTICATION}:
        kind, at = raw[at], at + header_length(kind, raw[at:])
    return at


def tcp_flags(packet: Packet) -> int | None:
    """The flags of a TCP segment, 0 of a datagram; None of a fragment that ends before them."""
    fragment = fragment_of(packet.behind_link)
    if packet.flow.protocol != TCP or (fragment and fragment.offset):
        return 0
    at = transport_offset(packet) + 13
    return packet.behind_link[at] if at < packet.length else None
