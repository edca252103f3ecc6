# SPDX-License-Identifier: Apache-2.0
"""What the load balancer must see in fragments and in ICMP, said a second time in plain Python.

Written from the RFCs (791, 792, 1122, 1191, 1812, 4443, 8200) and from the comments of
``bpf/abi/flows.h``. Frames come here when `oracle_parse.parse` has found that they are fragments,
or of another protocol than TCP and UDP: their IP headers are whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from tests.prog.lb.oracle_parse import (
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT_HEADER,
    HOP_BY_HOP,
    MALFORMED,
    MAX_EXTENSIONS,
    MIN_TRANSPORT,
    OTHER_PROTOCOL,
    ROUTING,
    TCP,
    Flow,
    Leave,
    Packet,
    header_length,
    number,
    split_link,
    walk_extensions,
)

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

ICMP = {4: 1, 6: 58}
ECHO = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
QUOTED_TRANSPORT = 8
FRAGMENT_TRANSPORT = 8  # the least that all fragments but the last have: RFC 791
CHECKSUM_AT = 16  # in a TCP header
MAX_OFFSET = 0xFFF  # headers further into the frame are not read
OUTER_ID_STEP = 0x9E37
REPLY_TTL = 64
MIN_MTU = {4: 68, 6: 1280}

FragmentKey = tuple["Address", "Address", int, int]
"""Source, destination, identification, and for IPv4 the protocol."""


@dataclass(frozen=True)
class Left:
    """What a first fragment leaves to those that follow."""

    source_port: int
    destination_port: int
    protocol: int
    backend: Address | None  # None: it went to the kernel
    checksum_at: int = 0  # of TCP, in what was cut up, if the first one ends before it
    gone: bool = False  # the backend has been removed since


@dataclass(frozen=True)
class Header:
    """An IP header, and what is behind it and its extension headers."""

    source: Address
    destination: Address
    protocol: int
    transport: int  # where it begins
    fragment: bool = False
    offset: int = 0
    identification: int = 0
    plain: bool = True  # neither options nor extension headers
    cut_at: int = 0  # where what is in fragments begins
    ip_protocol: int = 0  # as the IPv4 header has it
    authenticated: bool = False  # an authentication header was walked past

    @property
    def checksum_ends(self) -> int:
        """Where TCP's checksum ends, in the frame."""
        return self.transport + CHECKSUM_AT + 2


@dataclass(frozen=True)
class SlowPath:
    """A fragment, an ICMP error or an echo request, as far as the frame itself tells."""

    kind: str  # first, later, error, echo, authenticated
    packet: Packet  # its flow: without ports for "later", the quoted packet's turned round
    header: Header
    end: int  # of the packet, in the frame

    @property
    def fragment_key(self) -> FragmentKey:
        """What all fragments of one packet have in common."""
        header = self.header
        return header.source, header.destination, header.identification, header.ip_protocol

    @property
    def checksum_at(self) -> int:
        """Where TCP's checksum is in what was cut up, 0 if it is in this fragment, the first."""
        header = self.header
        if header.protocol != TCP or header.authenticated or header.checksum_ends <= self.end:
            return 0
        return header.transport + CHECKSUM_AT - header.cut_at


def read_slow_path(frame: bytes) -> SlowPath | None:
    """What a frame is; None if it is none of these, or can't be told. Leave: another verdict."""
    tag, ethertype, rest = split_link(frame)
    start = len(frame) - len(rest)
    version = 4 if ethertype == 0x0800 else 6
    header = read_header(frame, start, version)
    if _is_authenticated(rest, version):
        return _authenticated(frame, tag, rest, version)
    if header is None:
        return None
    packet = _packet(tag, rest, version, header)
    end = start + packet.length
    if header.fragment:
        return _fragment(frame, packet, header, end)
    return _icmp(frame, packet, header, end)


def _is_authenticated(rest: bytes, version: int) -> bool:
    """Whether the first header that isn't an IPv6 extension is an authentication header."""
    if version == 4:
        return rest[9] == AUTHENTICATION and not number(rest[6:8]) & 0x3FFF
    try:
        kind, _ = walk_extensions(rest)
    except Leave:
        return False
    return kind == AUTHENTICATION


def _authenticated(frame: bytes, tag: int, rest: bytes, version: int) -> SlowPath:
    """TCP or UDP behind it. Leave: something else, or it is cut."""
    start = len(frame) - len(rest)
    try:
        header = (_read_ipv4 if version == 4 else _read_ipv6)(frame, start)
    except Cut:
        raise Leave(MALFORMED) from None
    if header is None or header.fragment or header.protocol not in MIN_TRANSPORT:
        raise Leave(OTHER_PROTOCOL)
    packet = _packet(tag, rest, version, header)
    end = start + packet.length
    ports = _ports(frame, header, end, MIN_TRANSPORT[header.protocol])
    if ports is None:
        raise Leave(MALFORMED)
    flow = replace(packet.flow, source_port=ports[0], destination_port=ports[1])
    return SlowPath("authenticated", replace(packet, flow=flow), header, end)


def _icmp(frame: bytes, packet: Packet, header: Header, end: int) -> SlowPath | None:
    version = header.source.version
    at = header.transport
    if header.protocol != ICMP[version] or at + 8 > min(end, len(frame)) or at > MAX_OFFSET:
        return None
    if header.authenticated:
        return None
    if frame[at] == ECHO[version]:
        return SlowPath("echo", packet, header, end)
    return _error(frame, packet, header, end) if frame[at] in ERRORS[version] else None


class Cut(Exception):  # noqa: N818 - not an error: the walk is over
    """A header isn't there whole, or says nonsense of its length."""


def read_header(frame: bytes, at: int, version: int) -> Header | None:
    """The IP header at a place in the frame. None: there is none, or it ends too soon."""
    if at > MAX_OFFSET:
        return None
    try:
        return (_read_ipv4 if version == 4 else _read_ipv6)(frame, at)
    except Cut:
        return None


def _read_ipv4(frame: bytes, at: int) -> Header | None:
    raw = frame[at : at + 20]
    if len(raw) < 20 or raw[0] >> 4 != 4 or raw[0] & 15 < 5:
        return None
    flags = number(raw[6:8])
    behind = at + (raw[0] & 15) * 4
    header = Header(
        IPv4Address(raw[12:16]),
        IPv4Address(raw[16:20]),
        raw[9],
        behind,
        fragment=bool(flags & 0x3FFF),
        offset=flags & 0x1FFF,
        identification=number(raw[4:6]),
        plain=raw[0] & 15 == 5,
        cut_at=behind,
        ip_protocol=raw[9],
    )
    if header.offset:
        return header
    for _ in range(MAX_EXTENSIONS + 1):
        if header.protocol != AUTHENTICATION:
            break
        if header.transport > MAX_OFFSET:
            return None
        header = _past(frame, header)
    return header


def _read_ipv6(frame: bytes, at: int) -> Header | None:
    raw = frame[at : at + 40]
    if len(raw) < 40 or raw[0] >> 4 != 6:
        return None
    header = Header(IPv6Address(raw[8:24]), IPv6Address(raw[24:40]), raw[6], at + 40)
    return _walk(frame, header)


def _walk(frame: bytes, header: Header) -> Header | None:
    """Past the extension headers; behind a fragment header that means it the count starts anew."""
    steps = 0
    while steps <= MAX_EXTENSIONS:
        at, kind = header.transport, header.protocol
        if at > MAX_OFFSET:
            return None
        if kind not in (HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION, AUTHENTICATION):
            return header
        steps += 1
        header = _past(frame, header)
        if kind == ROUTING and frame[at + 3]:
            return None
        field = number(frame[at + 2 : at + 4])
        if kind == FRAGMENT_HEADER and field & 0xFFF9:
            if header.fragment:
                return None  # a fragment of a fragment
            header = replace(
                header,
                fragment=True,
                offset=field >> 3,
                identification=number(frame[at + 4 : at + 8]),
                cut_at=at + 8,
            )
            if header.offset:
                return header
            steps = 0
    return None


READ = {FRAGMENT_HEADER: 8, AUTHENTICATION: 12}
"""What must be there of a header to walk past it, where that isn't 4 bytes."""


def _past(frame: bytes, header: Header) -> Header:
    """Past the header that is next. Cut: it isn't there."""
    at, kind = header.transport, header.protocol
    raw = frame[at : at + READ.get(kind, 4)]
    if len(raw) < READ.get(kind, 4) or (kind == AUTHENTICATION and not raw[1]):
        raise Cut
    return replace(
        header,
        protocol=raw[0],
        transport=at + header_length(kind, raw),
        plain=False,
        authenticated=header.authenticated or kind == AUTHENTICATION,
    )


def _packet(tag: int, rest: bytes, version: int, header: Header) -> Packet:
    """The packet, with a flow that has no ports yet."""
    flow = Flow(header.source, header.destination, 0, 0, header.protocol)
    if version == 4:
        identification = header.identification + OUTER_ID_STEP * header.offset & 0xFFFF
        dont_fragment = bool(rest[6] & 0x40)
        return Packet(tag, rest, number(rest[2:4]), rest[1], dont_fragment, identification, flow)
    length, traffic_class = 40 + number(rest[4:6]), number(rest[:2]) >> 4 & 0xFF
    return Packet(tag, rest, length, traffic_class, None, 0, flow)


def _fragment(frame: bytes, packet: Packet, header: Header, end: int) -> SlowPath | None:
    if header.offset:
        return SlowPath("later", packet, header, end) if header.transport <= end else None
    ports = _ports(frame, header, end, FRAGMENT_TRANSPORT)
    if ports is None:
        return None
    source, destination = ports
    flow = replace(packet.flow, source_port=source, destination_port=destination)
    return SlowPath("first", replace(packet, flow=flow), header, end)


def _error(frame: bytes, packet: Packet, header: Header, end: int) -> SlowPath | None:
    """RFC 792: the internet header and 8 bytes of what came behind it."""
    quoted = read_header(frame, header.transport + 8, header.source.version)
    if quoted is None or quoted.offset or quoted.source != header.destination:
        return None
    ports = _ports(frame, quoted, end, QUOTED_TRANSPORT)
    if ports is None:
        return None
    source, destination = ports
    flow = Flow(quoted.destination, quoted.source, destination, source, quoted.protocol)
    return SlowPath("error", replace(packet, flow=flow), header, end)


def _ports(frame: bytes, header: Header, end: int, least: int) -> tuple[int, int] | None:
    at = header.transport
    if header.protocol not in MIN_TRANSPORT or at + least > end or at > MAX_OFFSET:
        return None
    raw = frame[at : at + 4]
    return (number(raw[:2]), number(raw[2:])) if len(raw) == 4 else None


# ---- Answers -------------------------------------------------------------------------------------


def may_be_answered(frame: bytes, source: Address) -> bool:
    """A frame to one receiver, from one sender: RFC 1122, 3.2.2."""
    if frame[0] & 1:
        return False
    if isinstance(source, IPv4Address):
        return source.packed[0] not in (0, 127) and source.packed[0] < 224
    return not source.is_multicast and int(source) > 1


def link_back(frame: bytes, start: int) -> bytes:
    """The link header of an answer: addresses exchanged, the tag as it was."""
    return frame[6:12] + frame[:6] + frame[12:start]


def echo_reply(frame: bytes, header: Header) -> bytes:
    """The answer to an echo request: addresses exchanged, another type, a TTL of its own.

    Checksums that were wrong stay wrong by as much.
    """
    version = header.source.version
    start = header.transport - {4: 20, 6: 40}[version]
    made = bytearray(link_back(frame, start) + frame[start:])
    addresses = {4: (12, 16, 20), 6: (8, 24, 40)}[version]
    first, second, third = (start + at for at in addresses)
    made[first:third] = frame[second:third] + frame[first:second]
    ttl = start + {4: 8, 6: 7}[version]
    made[ttl] = REPLY_TTL
    if version == 4:
        _update(made, start + 10, frame[ttl] << 8, REPLY_TTL << 8)
    made[header.transport] = ECHO_REPLY[version]
    at = header.transport + 2
    _update(made, at, ECHO[version] << 8, ECHO_REPLY[version] << 8)
    # What is summed up: with IPv6 the addresses as well, which aren't zero (RFC 8200, 8.1).
    message = made[start + 8 : at] if version == 6 else made[header.transport : at]
    message += made[at + 2 : start + _total_length(frame, start, version)]
    if not any(message + made[at : at + 2]):
        made[at : at + 2] = b"\xff\xff"
    return bytes(made)


def _total_length(frame: bytes, start: int, version: int) -> int:
    if version == 4:
        return number(frame[start + 2 : start + 4])
    return 40 + number(frame[start + 4 : start + 6])


def _update(made: bytearray, at: int, before: int, after: int) -> None:
    """What a word is less than it was, the checksum is more, modulo 2^16 - 1 (RFC 1071, 2).

    Zero is 0x0000 then, as the complement of a sum of anything else than zeros.
    """
    found = (number(bytes(made[at : at + 2])) + before - after) % 0xFFFF
    made[at : at + 2] = found.to_bytes(2, "big")


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (~_folded(total) & 0xFFFF).to_bytes(2, "big")


def told_mtu(packet: Packet, room: int, kind: str, *, df_only: bool = False) -> int | None:
    """What the sender of a packet that is larger than `room` is told, None for nothing.

    `df_only`: nothing without DF, as in RFC 1191.
    """
    version = packet.flow.source.version
    if kind == "error":
        return None
    if version == 6:
        return max(room, MIN_MTU[6]) if packet.length > MIN_MTU[6] else None
    if kind == "later" or room < MIN_MTU[4]:
        return None
    return None if df_only and not packet.dont_fragment else room


def too_big(frame: bytes, packet: Packet, header_at: int, mtu: int) -> bytes:
    """Fragmentation needed (RFC 1191) or Packet Too Big (RFC 4443), from the VIP."""
    link = link_back(frame, header_at)
    source, target = _ends(packet, frame, header_at)
    if isinstance(source, IPv4Address):
        quote = packet.behind_link[: 548 if packet.length >= 548 else 68]
        icmp = _summed(struct.pack("!BBHI", 3, 4, 0, mtu) + quote, b"")
        fixed = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(icmp), 0, 0x4000, REPLY_TTL, 1, 0)
        header = fixed + source.packed + target.packed
        return link + header[:10] + checksum(header) + header[12:] + icmp
    quote = packet.behind_link[:1232]
    addresses = source.packed + target.packed
    pseudo = addresses + struct.pack("!II", 8 + len(quote), 58)
    icmp = _summed(struct.pack("!BBHI", 2, 0, 0, mtu) + quote, pseudo)
    return link + struct.pack("!IHBB", 6 << 28, len(icmp), 58, REPLY_TTL) + addresses + icmp


def _ends(packet: Packet, frame: bytes, at: int) -> tuple[Address, Address]:
    """Who answers, and whom: the packet's destination and source."""
    header = read_header(frame, at, packet.flow.source.version)
    assert header is not None
    return header.destination, header.source


def _summed(icmp: bytes, pseudo: bytes) -> bytes:
    return icmp[:2] + checksum(pseudo + icmp) + icmp[4:]
