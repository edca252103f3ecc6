# SPDX-License-Identifier: Apache-2.0
"""Packets with an authentication header, written from RFC 4302."""

from __future__ import annotations

import struct

AUTHENTICATION = 51
EXTENSIONS = {0, 43, 60}


def header(follows: int, icv: int = 12) -> bytes:
    """An authentication header in front of a protocol, with a check value of so many bytes."""
    length = (12 + icv) // 4 - 2
    return struct.pack("!BBHII", follows, length, 0, 0x1234, 7) + bytes(range(icv))


def authenticated(packet: bytes, icv: int = 12) -> bytes:
    """An IP packet with one in front of its transport header (RFC 4302, 3.1.1)."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        more = header(packet[9], icv)
        made = bytearray(packet[:size] + more + packet[size:])
        made[2:4] = struct.pack("!H", len(made))
        made[9] = AUTHENTICATION
        made[10:12] = bytes(2)
        total = sum(struct.unpack(f"!{size // 2}H", made[:size]))
        made[10:12] = struct.pack("!H", 0xFFFF - total % 0xFFFF)
        return bytes(made)
    last, kind, at = 6, packet[6], 40
    while kind in EXTENSIONS:
        last, kind, at = at, packet[at], at + (packet[at + 1] + 1) * 8
    made = bytearray(packet[:at] + header(kind, icv) + packet[at:])
    made[last] = AUTHENTICATION
    made[4:6] = struct.pack("!H", len(made) - 40)
    return bytes(made)
