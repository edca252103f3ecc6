# SPDX-License-Identifier: Apache-2.0
"""What the decapsulating program must do to a frame, said a second time in plain Python.

Written from the RFCs (791, 2003, 2473, 4213, 6040, 6946, 8200), not from the C: `unwrap` takes a
frame and the configured addresses and returns the verdict's name, the frame that comes out and how
many bytes the inner packet has.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

UNWRAPPED = "DECAP_UNWRAPPED"
OTHER = "DECAP_PASS_OTHER"
FRAGMENT = "DECAP_PASS_FRAGMENT"
MALFORMED = "DECAP_DROP_MALFORMED"
ECN = "DECAP_DROP_ECN"

XDP_DROP = 1
XDP_PASS = 2

# RFC 6040, figure 4. Rows: the inner field, columns: the outer one. None: drop.
NOT_ECT, ECT_1, ECT_0, CE = range(4)
ECN_TABLE: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}

_EXTENSIONS = {0: "hop-by-hop", 43: "routing", 60: "destination"}
_FRAGMENT_HEADER = 44
_MAX_EXTENSIONS = 7
_GRE, _UDP = 47, 17
_CARRIES = {b"\x08\x00": 4, b"\x86\xdd": 41}
_FAMILIES = {4: 0x0800, 41: 0x86DD}  # what each tunnel protocol carries


class Leave(Exception):  # noqa: N818 - not an error: the parse is over
    """The verdict is known before the end of the parse."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True)
class Outcome:
    """A frame's verdict, what comes out, and the length of the inner IP packet (0: none)."""

    verdict: str
    frame: bytes
    destination: IPv4Address | IPv6Address | None = None
    inner_length: int = 0

    @property
    def action(self) -> int:
        """The XDP action that goes with the verdict."""
        return XDP_DROP if self.verdict.startswith("DECAP_DROP") else XDP_PASS


@dataclass
class Outer:
    """An outer header, however wrong it may be."""

    destination: IPv4Address | IPv6Address
    protocol: int
    ecn: int
    fragment: bool
    sane: bool
    payload: bytes  # as far as its length field goes


def unwrap(
    frame: bytes,
    addresses: Container[IPv4Address | IPv6Address],
    *,
    gre: bool = False,
    ports: Container[int] = (),
) -> Outcome:
    """What happens to a frame, whatever is in it. ``gre``, ``ports``: what else is unwrapped."""
    taken = {4, 41, *((47,) if gre else ()), *((17,) if ports else ())}
    try:
        return unwrap_or_leave(frame, addresses, taken, ports)
    except Leave as leave:
        return Outcome(leave.verdict, frame)


def unwrap_or_leave(
    frame: bytes,
    addresses: Container[IPv4Address | IPv6Address],
    taken: Container[int],
    ports: Container[int],
) -> Outcome:
    """The whole of it, as far as it goes. Leave: no further."""
    link, ethertype, packet = split_link(frame)
    if ethertype not in PARSERS:
        raise Leave(OTHER)
    outer, behind = PARSERS[ethertype](packet, taken)
    if outer.protocol == _UDP and (outer.fragment or not outer.sane):
        raise Leave(OTHER)
    if outer.sane and not outer.fragment:
        behind = take_between(outer, behind, ports)
    if outer.destination not in addresses:
        raise Leave(OTHER)
    if outer.fragment:
        raise Leave(FRAGMENT)
    if not outer.sane:
        raise Leave(MALFORMED)
    length = inner_length(outer)
    inner = merge_ecn(behind, outer)
    link = link[:-2] + _FAMILIES[outer.protocol].to_bytes(2, "big")
    return Outcome(UNWRAPPED, link + inner, outer.destination, length)


def split_link(frame: bytes) -> tuple[bytes, int, bytes]:
    """Link header with at most one 802.1Q tag, EtherType, and the rest."""
    size = 18 if frame[12:14] == b"\x81\x00" else 14
    if len(frame) < size:
        raise Leave(OTHER)
    return frame[:size], int.from_bytes(frame[size - 2 : size], "big"), frame[size:]


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071's sum of 16-bit words, folded; data has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def take_between(outer: Outer, behind: bytes, ports: Container[int]) -> bytes:
    """Take off GRE (RFC 2784), or UDP and GUE's header; returns the bytes from the packet on.

    ``behind``: all bytes behind the outer IP header, padding too. GUE by draft-ietf-intarea-gue-09.
    """
    if outer.protocol == _GRE:
        if len(behind) < 4 or behind[:2] != b"\0\0" or behind[2:4] not in _CARRIES:
            raise Leave(OTHER)
        outer.protocol = _CARRIES[behind[2:4]]
        return _behind(outer, behind, 4, len(outer.payload))
    if outer.protocol != _UDP:
        return behind
    if len(behind) < 8 or int.from_bytes(behind[2:4], "big") not in ports:
        raise Leave(OTHER)
    length = int.from_bytes(behind[4:6], "big")
    if not 8 <= length <= len(outer.payload):
        outer.sane = False
        return behind
    return take_gue(outer, behind, length)


def take_gue(outer: Outer, behind: bytes, length: int) -> bytes:
    """What is behind UDP, whose datagram has that length."""
    gue = behind[8:12]
    if len(gue) < 4:
        raise Leave(OTHER)
    if gue[0] >> 4 in {4, 6}:  # variant 1, whose two bits are those of an IP version; and FOU
        outer.protocol = 4 if gue[0] >> 4 == 4 else 41
        return _behind(outer, behind, 8, length)
    variant, control, words = gue[0] >> 6, gue[0] & 0x20, gue[0] & 0x1F
    if variant or control or gue[1] not in _FAMILIES:
        raise Leave(OTHER)
    outer.protocol = gue[1]
    return _behind(outer, behind, 12 + words * 4, length)


def _behind(outer: Outer, behind: bytes, size: int, end: int) -> bytes:
    """Without headers of that size. ``end``: of the packet, in all that is behind the outer one."""
    outer.sane = size <= end
    outer.payload = outer.payload[size:end]
    return behind[size:]


def parse_ipv4(packet: bytes, taken: Container[int]) -> tuple[Outer, bytes]:
    """The outer IPv4 header and all bytes behind it."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] not in taken:
        raise Leave(OTHER)
    size = (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    flags = int.from_bytes(packet[6:8], "big")
    sane = 20 <= size <= total <= len(packet) and ones_complement_sum(packet[:size]) == 0xFFFF
    outer = Outer(
        destination=IPv4Address(packet[16:20]),
        protocol=packet[9],
        ecn=packet[1] & 3,
        fragment=bool(flags & 0x3FFF),
        sane=sane,
        payload=packet[size:total],
    )
    return outer, packet[size:]


def parse_ipv6(packet: bytes, taken: Container[int]) -> tuple[Outer, bytes]:
    """The outer IPv6 header with its extension headers, and all bytes behind them."""
    if len(packet) < 40 or packet[0] >> 4 != 6:
        raise Leave(OTHER)
    protocol, size, fragment = walk_extensions(packet)
    if protocol not in taken:
        raise Leave(OTHER)
    total = 40 + int.from_bytes(packet[4:6], "big")
    outer = Outer(
        destination=IPv6Address(packet[24:40]),
        protocol=protocol,
        ecn=packet[1] >> 4 & 3,
        fragment=fragment,
        sane=size <= total <= len(packet),
        payload=packet[size:total],
    )
    return outer, packet[size:]


def walk_extensions(packet: bytes) -> tuple[int, int, bool]:
    """The first header that is no extension, where it begins, and whether this is a fragment."""
    kind, at = packet[6], 40
    for _ in range(_MAX_EXTENSIONS + 1):
        if kind == _FRAGMENT_HEADER:
            if len(packet) < at + 8:
                raise Leave(OTHER)
            if int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF9:
                return packet[at], at + 8, True
            kind, at = packet[at], at + 8
        elif kind in _EXTENSIONS:
            if len(packet) < at + 4:
                raise Leave(OTHER)
            if _EXTENSIONS[kind] == "routing" and packet[at + 3]:
                raise Leave(OTHER)
            kind, at = packet[at], at + 8 * (packet[at + 1] + 1)
        else:
            return kind, at, False
    raise Leave(OTHER)


PARSERS = {0x0800: parse_ipv4, 0x86DD: parse_ipv6}


def inner_length(outer: Outer) -> int:
    """Length of the inner packet as its header says, or Leave: it can't be right."""
    packet = outer.payload
    if outer.protocol == 4:
        if len(packet) < 20 or packet[0] >> 4 != 4:
            raise Leave(MALFORMED)
        length = int.from_bytes(packet[2:4], "big")
        if not 20 <= (packet[0] & 15) * 4 <= length <= len(packet):
            raise Leave(MALFORMED)
        return length
    if len(packet) < 40 or packet[0] >> 4 != 6:
        raise Leave(MALFORMED)
    length = 40 + int.from_bytes(packet[4:6], "big")
    if length > len(packet):
        raise Leave(MALFORMED)
    return length


def merge_ecn(packet: bytes, outer: Outer) -> bytes:
    """The inner packet with its ECN field as RFC 6040 wants it."""
    shift = 0 if outer.protocol == 4 else 4
    inner = packet[1] >> shift & 3
    merged = ECN_TABLE[inner][outer.ecn]
    if merged is None:
        raise Leave(ECN)
    if merged == inner:
        return packet
    changed = bytearray(packet)
    changed[1] = packet[1] & ~(3 << shift) | merged << shift
    if outer.protocol == 4:
        changed[10:12] = checksum_like_before(packet, bytes(changed)).to_bytes(2, "big")
    return bytes(changed)


def checksum_like_before(before: bytes, after: bytes) -> int:
    """The checksum that makes `after` as right, or exactly as wrong, as `before` was.

    Sums are modulo 0xffff. A right checksum comes out as computing it anew would have it; 0xffff,
    the other zero, does not come out.
    """
    size = (before[0] & 15) * 4
    error = ones_complement_sum(before[:size]) % 0xFFFF
    rest = ones_complement_sum(after[:10] + b"\0\0" + after[12:size])
    return (error - rest) % 0xFFFF
