# SPDX-License-Identifier: Apache-2.0
"""IP packets that traces are made with: those of a flow, and those that are about one."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from towpath.model.service import Protocol
from towpath.model.traced import TracedPacket, smallest

if TYPE_CHECKING:
    from towpath.model.flow import FlowTuple
    from towpath.model.kinds import Address

_HOPS = 64
_DONT_FRAGMENT, _MORE_FRAGMENTS = 0x4000, 0x2000
_ICMP, _ICMPV6, _FRAGMENT_HEADER = 1, 58, 44
# RFC 1191: fragmentation needed, RFC 4443: Packet Too Big; both with an MTU of 1280.
_TOO_BIG = {4: b"\x03\x04\0\0\0\0\x05\0", 6: b"\x02\0\0\0\0\0\x05\0"}
_SOME_DATA = bytes(8)
_ACK = 0x10
_SHORT_HEADER = b"\x40"
_SHORT_REST = bytes(20)
_FLAGS = {"syn": 0x02, "rst": 0x04}


def sample(flow: FlowTuple) -> bytes:
    """Return the IP packet that a traced packet describes; of a plain flow, `packet`."""
    if not isinstance(flow, TracedPacket):
        return packet(flow)
    if flow.kind == "error":
        return _error(flow)
    if flow.kind == "fragment":
        return _first_fragment(flow)
    if flow.kind in _FLAGS:
        return packet(flow, tcp_flags=_FLAGS[flow.kind])
    if flow.kind == "quic":
        return packet(flow, _SHORT_HEADER + bytes.fromhex(flow.connection_id) + _SHORT_REST)
    return packet(flow, bytes((flow.size or 0) - smallest(flow)) if flow.size else b"")


def packet(flow: FlowTuple, data: bytes = b"", *, tcp_flags: int = _ACK) -> bytes:
    """Return an IP packet of the flow: a TCP segment or a datagram, and no checksums.

    IPv4 may not be fragmented.
    """
    transport = _transport(flow, flow.source_port, flow.destination_port, data, tcp_flags)
    protocol = flow.protocol.number
    return _header(flow.source, flow.destination, protocol, len(transport)) + transport


def _error(flow: FlowTuple) -> bytes:
    """Return what a client's router sends to a VIP whose answer was too big for it."""
    version = flow.source.version
    answer = _transport(flow, flow.destination_port, flow.source_port, b"")
    quoted = _header(flow.destination, flow.source, flow.protocol.number, len(answer)) + answer
    message = _TOO_BIG[version] + quoted
    protocol = _ICMP if version == 4 else _ICMPV6  # noqa: PLR2004 - the IP version
    return _header(flow.source, flow.destination, protocol, len(message)) + message


def _first_fragment(flow: FlowTuple) -> bytes:
    """Return a packet's first fragment, with its ports."""
    protocol = flow.protocol.number
    first = _transport(flow, flow.source_port, flow.destination_port, _SOME_DATA)
    if isinstance(flow.source, IPv4Address):
        header = _header(flow.source, flow.destination, protocol, len(first), _MORE_FRAGMENTS)
        return header + first
    fragment = bytes((protocol, 0, 0, 1)) + bytes(4)  # offset 0, more to come
    size = len(fragment) + len(first)
    return _header(flow.source, flow.destination, _FRAGMENT_HEADER, size) + fragment + first


def _transport(
    flow: FlowTuple, source: int, destination: int, data: bytes, tcp_flags: int = _ACK
) -> bytes:
    ports = source.to_bytes(2, "big") + destination.to_bytes(2, "big")
    if flow.protocol is Protocol.TCP:
        return ports + bytes(8) + bytes((0x50, tcp_flags)) + bytes(6) + data
    return ports + (8 + len(data)).to_bytes(2, "big") + bytes(2) + data


def _header(
    source: Address, destination: Address, protocol: int, size: int, flags: int = _DONT_FRAGMENT
) -> bytes:
    """Return an IP header in front of so many bytes."""
    ends = source.packed + destination.packed
    if isinstance(source, IPv4Address):
        words = (0x4500, 20 + size, 0, flags, _HOPS << 8 | protocol, 0)
        return b"".join(word.to_bytes(2, "big") for word in words) + ends
    return b"\x60\0\0\0" + size.to_bytes(2, "big") + bytes((protocol, _HOPS)) + ends
