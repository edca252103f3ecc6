# SPDX-License-Identifier: Apache-2.0
"""What masquerade is to make of packets: built anew by scapy, which makes the checksums itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

if TYPE_CHECKING:
    from scapy.packet import Packet

_ECHOES = (ICMPv6EchoRequest, ICMPv6EchoReply)


def header(packet: Packet) -> Packet:
    """The outermost IP header of a packet."""
    return packet[IP] if IP in packet else packet[IPv6]


def fresh(packet: Packet) -> Packet:
    """A packet with checksums and lengths as scapy makes them."""
    copy = packet.copy()
    layer = copy
    while layer:
        for field in ("chksum", "cksum", "len", "plen"):
            if field in layer.fields and not isinstance(layer, Ether):
                layer.delfieldval(field)
        layer = layer.payload
    return copy.__class__(bytes(copy))


def moved(packet: Packet, *, source: bool, address: str, port: int, hops: int = 1) -> Packet:
    """The packet with another source, or destination, and so many hops less."""
    copy = packet.copy()
    ip = header(copy)
    setattr(ip, "src" if source else "dst", address)
    if isinstance(ip, IP):
        ip.ttl -= hops
    else:
        ip.hlim -= hops
    for kind in (TCP, UDP):
        if kind in copy:
            setattr(copy[kind], "sport" if source else "dport", port)
    for kind in (ICMP, *_ECHOES):
        if kind in copy:
            copy[kind].id = port
    return fresh(copy)


def framed(packet: Packet, source: str, destination: str) -> bytes:
    """In a frame."""
    return bytes(Ether(src=source, dst=destination) / packet)


def port_of(packet: Packet, *, source: bool) -> int:
    """The port of the source or destination, or an echo's identifier."""
    for kind in (TCP, UDP):
        if kind in packet:
            return int(packet[kind].sport if source else packet[kind].dport)
    for kind in (ICMP, *_ECHOES):
        if kind in packet:
            return int(packet[kind].id)
    raise AssertionError(f"no port in {packet!r}")
