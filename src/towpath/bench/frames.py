# SPDX-License-Identifier: Apache-2.0
"""Frames as a client's router sends them, and whether one came out as it should."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from towpath.bench.errors import BenchError
from towpath.model.service import Protocol

if TYPE_CHECKING:
    from collections.abc import Container

    from towpath.model.flow import FlowTuple
    from towpath.model.kinds import Address

TCP_SYN = 0x02
TCP_ACK = 0x10

ETHERNET = 14
GATEWAY = ip_address("192.0.2.254")
"""Every backend is behind it, but for the one on the link, which it is itself."""
GATEWAY_MAC = bytes.fromhex("020000000001")
_DEVICE_MAC = bytes.fromhex("020000000002")
IPV4, IPV6 = 4, 6
_ETHERTYPE = {IPV4: b"\x08\x00", IPV6: b"\x86\xdd"}
_IP_HEADER = {IPV4: 20, IPV6: 40}
# Where in the frame the last 32 bits of the IP source address are.
SOURCE_WORD = {IPV4: ETHERNET + 12, IPV6: ETHERNET + 8 + 12}
_TTL = 64
PAYLOAD = b"sixteen bytes..."
_CARRIES = {_ETHERTYPE[IPV4]: 4, _ETHERTYPE[IPV6]: 41}  # IPPROTO_IPIP, IPPROTO_IPV6


def frame(
    flow: FlowTuple,
    tcp_flags: int = TCP_ACK,
    *,
    payload: int = len(PAYLOAD),
    data: bytes = PAYLOAD,
) -> bytes:
    """Return an untagged Ethernet frame with so many bytes of payload, which begins with ``data``.

    IPv4 has its header checksum and DF; TCP and UDP checksums are 0, which no load balancer
    looks at.
    """
    transport = _transport(flow, tcp_flags, data[:payload].ljust(payload, b"."))
    packet = _ip_header(flow, transport) + transport
    return _DEVICE_MAC + GATEWAY_MAC + _ETHERTYPE[flow.source.version] + packet


def _transport(flow: FlowTuple, tcp_flags: int, carried: bytes) -> bytes:
    ports = struct.pack("!HH", flow.source_port, flow.destination_port)
    if flow.protocol is Protocol.UDP:
        return ports + struct.pack("!HH", 8 + len(carried), 0) + carried
    return ports + struct.pack("!IIBBHHH", 1, 1, 5 << 4, tcp_flags, 8192, 0, 0) + carried


def _ip_header(flow: FlowTuple, transport: bytes) -> bytes:
    protocol, ends = flow.protocol.number, flow.source.packed + flow.destination.packed
    if flow.source.version == IPV6:
        return struct.pack("!IHBB", 6 << 28, len(transport), protocol, _TTL) + ends
    length = _IP_HEADER[IPV4] + len(transport)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, _TTL, protocol, 0) + ends
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:]


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Between(NamedTuple):
    """What a tunnel has between its outer IP header and the packet."""

    protocol: int
    length: int


def check_encapsulated(
    sent: bytes, got: bytes, backends: Container[Address], between: Between | None = None
) -> None:
    """Raise BenchError unless ``got`` is ``sent`` in a tunnel to one of ``backends``.

    The Ethernet header must lead to GATEWAY_MAC, the packet inside be what it was. ``between``:
    what follows the outer IP header; None: the packet.
    """
    version = {kind: v for v, kind in _ETHERTYPE.items()}.get(got[12:ETHERNET], 0)
    if not version or got[:6] != GATEWAY_MAC:
        raise BenchError(f"the frame goes to {got[:6].hex(':')} as {got[12:ETHERNET].hex()}")
    behind = ETHERNET + _IP_HEADER[version]
    inner = behind + (between.length if between else 0)
    if got[inner:] != sent[ETHERNET:]:
        raise BenchError(f"the packet inside is not what it was: {got.hex()}")

    outer = got[ETHERNET:behind]
    carries = between.protocol if between else _CARRIES[sent[12:ETHERNET]]
    length, protocol, to = _outer_fields(outer, version)
    if (length, protocol) != (len(got) - ETHERNET, carries):
        raise BenchError(f"the outer header has length {length} and protocol {protocol}")
    if to not in backends:
        raise BenchError(f"{to} is no backend of the service")
    if version == IPV4 and _checksum(outer):
        raise BenchError(f"the outer header's checksum is wrong: {outer.hex()}")


def check_in_new_frame(sent: bytes, got: bytes) -> None:
    """Raise BenchError unless ``got`` is the packet of ``sent`` in a frame to GATEWAY_MAC."""
    if got[:6] != GATEWAY_MAC:
        raise BenchError(f"the frame goes to {got[:6].hex(':')}")
    if got[12:] != sent[12:]:
        raise BenchError(f"the packet is not what it was: {got.hex()}")


def reply_to(sent: bytes) -> bytes:
    """Return an IPv4 frame without options with its addresses and its ports changed round."""
    at = ETHERNET + _IP_HEADER[IPV4]
    head = sent[ETHERNET : ETHERNET + 12] + sent[ETHERNET + 16 : at] + sent[ETHERNET + 12 :][:4]
    return sent[:ETHERNET] + head + sent[at + 2 : at + 4] + sent[at : at + 2] + sent[at + 4 :]


def check_translated(
    sent: bytes, got: bytes, sources: Container[Address], destinations: Container[Address]
) -> None:
    """Raise BenchError unless ``got`` is ``sent``, an IPv4 frame, between other ends."""
    if got[:6] != GATEWAY_MAC or len(got) != len(sent):
        raise BenchError(f"the frame goes to {got[:6].hex(':')}, {len(got)} bytes")
    header = got[ETHERNET : ETHERNET + _IP_HEADER[IPV4]]
    source, destination = ip_address(header[12:16]), ip_address(header[16:20])
    if source not in sources or destination not in destinations:
        raise BenchError(f"it goes from {source} to {destination}")
    if header[8] != sent[ETHERNET + 8] - 1 or _checksum(header):
        raise BenchError(f"the IP header has a wrong TTL or checksum: {header.hex()}")


def _outer_fields(outer: bytes, version: int) -> tuple[int, int, Address]:
    """Return the length of the packet, the protocol inside and the destination."""
    if version == IPV4:
        return int.from_bytes(outer[2:4], "big"), outer[9], ip_address(outer[16:20])
    length = int.from_bytes(outer[4:6], "big") + _IP_HEADER[IPV6]
    return length, outer[6], ip_address(outer[24:40])
