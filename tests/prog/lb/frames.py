# SPDX-License-Identifier: Apache-2.0
"""Frames of clients, made by scapy."""

from __future__ import annotations

from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from tests.prog.lb.frames_fast import redirected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

CLIENTS = {4: ip_address("198.51.100.77"), 6: ip_address("2001:db8:3::77")}
VIPS = {4: ip_address("203.0.113.10"), 6: ip_address("2001:db8:4::10")}
PORT = 80
TRANSPORTS = {6: TCP, 17: UDP}


def ether(*, vlan: int | None = None, priority: int = 0, **fields: Any) -> Packet:
    """A link header, with a tag if asked for."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)
    return link if vlan is None else link / Dot1Q(vlan=vlan, prio=priority)


def ip(
    family: int,
    *,
    source: Address | None = None,
    vip: Address | None = None,
    traffic_class: int = 0,
    **fields: Any,
) -> Packet:
    """An IP header of either family, from a client to a VIP."""
    src, dst = str(source or CLIENTS[family]), str(vip or VIPS[family])
    if family == 4:
        return IP(src=src, dst=dst, tos=traffic_class, **fields)
    return IPv6(src=src, dst=dst, tc=traffic_class, **fields)


def segment(
    protocol: int = 6, *, sport: int = 40000, dport: int = PORT, payload: bytes = b"towpath"
) -> Packet:
    """A TCP segment or UDP datagram."""
    header = TRANSPORTS[protocol](sport=sport, dport=dport)
    if isinstance(header, TCP):
        header.flags = "A"
    return header / Raw(payload)


def frame(
    family: int = 4,
    protocol: int = 6,
    *,
    vip: Address | None = None,
    sport: int = 40000,
    dport: int = PORT,
    payload: bytes = b"towpath",
    vlan: int | None = None,
    **fields: Any,
) -> bytes:
    """The plainest frame of its kind."""
    named = tuple(fields.items())
    made = _plainest(family, protocol, payload, vlan, named)
    return redirected(made, protocol, vip or VIPS[family], sport, dport)


@cache
def _plainest(
    family: int,
    protocol: int,
    payload: bytes,
    vlan: int | None,
    fields: tuple[tuple[str, Any], ...],
) -> bytes:
    """One to the usual VIP and ports, by scapy."""
    packet = ether(vlan=vlan) / ip(family, **dict(fields))
    return bytes(packet / segment(protocol, payload=payload))


def made_for(service: Service, **fields: Any) -> bytes:
    """The plainest frame to a service that is for one port of one address."""
    vip, port = service.vip, service.port
    assert isinstance(vip, IPv4Address | IPv6Address)
    assert isinstance(port, int)
    return frame(vip.version, service.protocol.number, vip=vip, dport=port, **fields)


def flows(count: int, family: int = 4, protocol: int = 6, *, start: int = 0) -> Iterator[bytes]:
    """So many frames of as many flows: clients of one network, ports that go round."""
    made = bytearray(frame(family, protocol))
    client, port = {4: (28, 34), 6: (36, 54)}[family]  # the client's last two bytes
    for flow in range(start, start + count):
        made[client : client + 2] = (flow // 50000).to_bytes(2, "big")
        made[port : port + 2] = (1024 + flow % 50000).to_bytes(2, "big")
        yield bytes(made)
