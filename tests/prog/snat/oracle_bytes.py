# SPDX-License-Identifier: Apache-2.0
"""The bytes of a translated packet, written anew where the program only changes some.

Shares no code with Towpath. Checksums are computed from scratch (RFC 1071), but for those of first
fragments, which cover more than is there and are followed (RFC 1624).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.prog.lb.oracle import checksum, mix
from tests.prog.lb.oracle_parse import TCP, UDP, Flow, Fragment, fragment_of, transport_offset

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Packet


def hops(packet: Packet) -> int:
    """TTL or hop limit."""
    return packet.behind_link[8 if packet.behind_link[0] >> 4 == 4 else 7]


def translated(packet: Packet, ends: Flow, seed: int) -> bytes:
    """The IP packet, padding too, between other ends and one hop farther."""
    fragment = fragment_of(packet.behind_link)
    raw = with_ends(packet.behind_link, ends)
    if fragment is not None:
        return translated_fragment(packet, fragment, raw, ends, seed)
    at = transport_offset(packet)
    raw[at : at + 4] = struct.pack("!HH", ends.source_port, ends.destination_port)
    segment = bytes(raw[at : packet.length])
    where = at + (16 if ends.protocol == TCP else 6)
    if ends.protocol == TCP or raw[where : where + 2] != bytes(2):
        raw[where : where + 2] = struct.pack("!H", transport_checksum(segment, ends))
    return bytes(raw)


def with_ends(packet: bytes, ends: Flow) -> bytearray:
    """An IP packet with other addresses, one hop farther."""
    raw = bytearray(packet)
    if raw[0] >> 4 == 6:
        raw[7] -= 1
        raw[8:40] = ends.source.packed + ends.destination.packed
        return raw
    raw[8] -= 1
    raw[12:20] = ends.source.packed + ends.destination.packed
    return summed(raw)


def summed(raw: bytearray) -> bytearray:
    """With the IPv4 header's checksum made anew."""
    raw[10:12] = bytes(2)
    raw[10:12] = struct.pack("!H", checksum(bytes(raw[: (raw[0] & 15) * 4])))
    return raw


def translated_fragment(
    packet: Packet, fragment: Fragment, raw: bytearray, ends: Flow, seed: int
) -> bytes:
    """Another identification; in the first one ports, and a checksum for the whole that changes."""
    before = bytes(raw)
    place = slice(fragment.id_at, fragment.id_at + fragment.id_size)
    raw[place] = masked(before[place], packet.flow, seed)
    if raw[0] >> 4 == 4:
        summed(raw)
    tcp = ends.protocol == TCP
    if fragment.offset:
        start = (raw[0] & 15) * 4 if raw[0] >> 4 == 4 else fragment.id_at + 4
        at = start + packet.checksum_at - fragment.offset * 8
        there = bool(packet.checksum_at) and start <= at
    else:
        at = transport_offset(packet)
        raw[at : at + 4] = ports_of(ends)
        at += 16 if tcp else 6
        there = True
    where = slice(at, at + 2)
    if there and at + 2 <= packet.length and (tcp or raw[where] != bytes(2)):
        old, new = (
            flow.source.packed + flow.destination.packed + ports_of(flow)
            for flow in (packet.flow, ends)
        )
        raw[where] = followed(before[where], old, new, zero=tcp)
    return bytes(raw)


def ports_of(flow: Flow) -> bytes:
    """As they lie in a transport header."""
    return struct.pack("!HH", flow.source_port, flow.destination_port)


def masked(identification: bytes, flow: Flow, seed: int) -> bytes:
    """As the comments of bpf/snat/rewrite_fragment.h say: XORed with a keyed hash of the pair."""
    state = seed
    for address in (flow.source, flow.destination):
        for word in struct.unpack("<2Q", address.packed.rjust(16, b"\0")):
            state = mix(state, word)
    size = len(identification)
    mask = mix(state, flow.protocol if size == 2 else 0) >> 32 & (1 << 8 * size) - 1
    return (int.from_bytes(identification, "big") ^ mask).to_bytes(size, "big")


def followed(check: bytes, old: bytes, new: bytes, *, zero: bool) -> bytes:
    """A checksum of what was old and is new now. `zero`: whether it may be 0.

    Sums are modulo 2^16 - 1 (RFC 1071, 2), and so are numbers of any length, of which 2^16 is 1.
    Something of what is summed up isn't zero: an address.
    """
    less = int.from_bytes(old, "big") - int.from_bytes(new, "big")
    found = (int.from_bytes(check, "big") + less) % 0xFFFF
    return (found if found or zero else 0xFFFF).to_bytes(2, "big")


def transport_checksum(segment: bytes, ends: Flow) -> int:
    """RFC 9293 and 768: over the pseudo header and the segment with a checksum of 0."""
    at = 16 if ends.protocol == TCP else 6
    segment = segment[:at] + bytes(2) + segment[at + 2 :]
    pseudo = ends.source.packed + ends.destination.packed
    pseudo += struct.pack("!II", len(segment), ends.protocol)
    found = checksum(pseudo + segment + bytes(len(segment) % 2))
    return 0xFFFF if ends.protocol == UDP and found == 0 else found
