# SPDX-License-Identifier: Apache-2.0
"""Cuts IP packets into fragments and puts them together again, in plain Python.

RFC 791, 3.2, and RFC 8200, 4.5. Other headers are left as they are, so that what is put together
again can be compared with the whole packet byte for byte.
"""

from __future__ import annotations

import struct

from tests.prog.lb.oracle import checksum
from tests.prog.lb.oracle_parse import FRAGMENT_HEADER

MORE = {4: 0x2000, 6: 1}
OFFSET_SHIFT = {4: 0, 6: 3}


def unfragmentable(packet: bytes) -> int:
    """How much of a packet is in every fragment: all headers but IPv6's last options."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    kind, at, end = packet[6], 40, 40
    while kind in {0, 43, 60, FRAGMENT_HEADER}:
        before = kind
        kind, at = packet[at], at + (packet[at + 1] + 1) * 8
        end = end if before == 60 and kind not in {0, 43, FRAGMENT_HEADER} else at
    return end


def cut(packet: bytes, size: int, number: int) -> list[bytes]:
    """A packet's fragments, of so many bytes of it each, under an identification."""
    assert size % 8 == 0
    front = unfragmentable(packet)
    body = packet[front:]
    made = []
    for at in range(0, len(body), size):
        version = packet[0] >> 4
        field = at // 8 << OFFSET_SHIFT[version]
        field |= MORE[version] if at + size < len(body) else 0
        build = _ipv4 if version == 4 else _ipv6
        made.append(build(packet[:front], body[at : at + size], field, number))
    return made


def _ipv4(header: bytes, body: bytes, field: int, number: int) -> bytes:
    raw = bytearray(header + body)
    field |= struct.unpack("!H", header[6:8])[0] & 0x4000
    raw[2:8] = struct.pack("!HHH", len(raw), number & 0xFFFF, field)
    return summed(bytes(raw))


def summed(packet: bytes) -> bytes:
    """An IPv4 packet, its header's checksum made anew."""
    size = (packet[0] & 15) * 4
    header = packet[:10] + bytes(2) + packet[12:size]
    return header[:10] + struct.pack("!H", checksum(header)) + packet[12:]


def _ipv6(headers: bytes, body: bytes, field: int, number: int) -> bytes:
    last = 6  # where the last header says what follows it
    kind, at = headers[6], 40
    while at < len(headers):
        last, kind, at = at, headers[at], at + (headers[at + 1] + 1) * 8
    front = bytearray(headers)
    front[last] = FRAGMENT_HEADER
    front[4:6] = struct.pack("!H", len(headers) - 40 + 8 + len(body))
    return bytes(front) + struct.pack("!BBHI", kind, 0, field, number) + body


def identification(packet: bytes) -> bytes:
    """A fragment's, as it lies there."""
    return packet[4:6] if packet[0] >> 4 == 4 else packet[(at := _header_at(packet)) + 4 : at + 8]


def _header_at(packet: bytes) -> int:
    kind, at = packet[6], 40
    while kind != FRAGMENT_HEADER:
        kind, at = packet[at], at + (packet[at + 1] + 1) * 8
    return at


def put_together(fragments: list[bytes]) -> bytes:
    """The packet. All its fragments must be there, once each, and of one identification."""
    version = fragments[0][0] >> 4
    parts = sorted(map(_ipv4_part if version == 4 else _ipv6_part, fragments))
    assert len({identification(each) for each in fragments}) == 1
    body = b""
    for number, (offset, more, _, data) in enumerate(parts):
        assert offset == len(body), "a hole, or twice the same"
        assert more == (number < len(parts) - 1)
        body += data
    front = bytearray(parts[0][2])
    if version == 4:
        front[2:4] = struct.pack("!H", len(front) + len(body))
        front[6] &= 0x40
        front[7] = 0
        return summed(bytes(front) + body)
    front[4:6] = struct.pack("!H", len(front) - 40 + len(body))
    return bytes(front) + body


def _ipv4_part(packet: bytes) -> tuple[int, bool, bytes, bytes]:
    size = (packet[0] & 15) * 4
    length, _, flags = struct.unpack("!HHH", packet[2:8])
    return (flags & 0x1FFF) * 8, bool(flags & 0x2000), packet[:size], packet[size:length]


def _ipv6_part(packet: bytes) -> tuple[int, bool, bytes, bytes]:
    at = _header_at(packet)
    length = 40 + struct.unpack("!H", packet[4:6])[0]
    front, field = bytearray(packet[:at]), struct.unpack("!H", packet[at + 2 : at + 4])[0]
    last, before = 6, 40
    while before < at:
        last, before = before, before + (packet[before + 1] + 1) * 8
    front[last] = packet[at]
    return field & 0xFFF8, bool(field & 1), bytes(front), packet[at + 8 : length]
