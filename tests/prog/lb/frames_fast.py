# SPDX-License-Identifier: Apache-2.0
"""Frames that differ from one that is there in addresses and ports only.

scapy takes a hundred times as long to make one, which an emulated machine feels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

_LINK = {0x0800: 4, 0x86DD: 6}
_CHECKSUM = {6: 16, 17: 6}


def redirected(made: bytes, protocol: int, vip: Address, sport: int, dport: int) -> bytes:
    """The same frame to another VIP, and with other ports, its checksums made to fit.

    By RFC 1624, equation 3. The frame has no IPv6 extension headers; a UDP checksum of 0 stays.
    """
    frame = bytearray(made)
    at = 12
    while int.from_bytes(frame[at : at + 2], "big") == 0x8100:
        at += 4
    family = _LINK[int.from_bytes(frame[at : at + 2], "big")]
    l3 = at + 2
    l4 = l3 + (40 if family == 6 else (frame[l3] & 15) * 4)
    destination = slice(l3 + 24, l3 + 40) if family == 6 else slice(l3 + 16, l3 + 20)
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    addresses = bytes(frame[destination]), vip.packed
    if family == 4:
        _update(frame, l3 + 10, *addresses)
    checksum = l4 + _CHECKSUM[protocol]
    if protocol == 6 or frame[checksum : checksum + 2] != b"\0\0":
        _update(frame, checksum, addresses[0] + frame[l4 : l4 + 4], addresses[1] + ports)
        if protocol == 17 and frame[checksum : checksum + 2] == b"\0\0":
            frame[checksum : checksum + 2] = b"\xff\xff"
    frame[destination] = vip.packed
    frame[l4 : l4 + 4] = ports
    return bytes(frame)


def _update(frame: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Make the checksum at a place fit bytes that have become others."""
    total = ~int.from_bytes(frame[at : at + 2], "big") & 0xFFFF
    for was, comes in zip(_words(old), _words(new), strict=True):
        total += (~was & 0xFFFF) + comes
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
