# SPDX-License-Identifier: Apache-2.0
"""What masquerade is to make of any packet, in plain Python.

A dictionary of flows, and headers that are packed anew, checksums included. It shares no code with
Towpath, nor with scapy.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

Address = IPv4Address | IPv6Address
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
SYN, ACK, RST, FIN = 2, 16, 4, 1
_LENGTHS = {TCP: 20, UDP: 8, ICMP: 8, ICMP6: 8}
_CHECKS = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}


@dataclass(frozen=True)
class Packet:
    """A packet as it is to be. ``wrong``: what is added to its transport's checksum."""

    source: Address
    destination: Address
    protocol: int
    sport: int
    dport: int
    """Of echoes ``sport`` is the identifier if they ask, and ``dport`` if they answer."""
    hops: int = 64
    tos: int = 0
    ident: int = 0
    flags: int = 0
    asks: bool = True
    options: int = 0
    payload: bytes = b""
    wrong: int = 0

    @property
    def v4(self) -> bool:
        """Its family."""
        return self.source.version == 4

    def packed(self) -> bytes:
        """Its bytes from the IP header on."""
        body = bytearray(self._transport())
        at = _CHECKS[self.protocol]
        pseudo = b"" if self.protocol == ICMP else self._pseudo(len(body))
        check = (_sum(pseudo + bytes(body)) + 0xFFFF - self.wrong) % 0xFFFF
        # Of the two zeros a sum can be; a sum of something is never the other one.
        check = 0xFFFF - (check or 0xFFFF)
        if self.protocol == UDP and not check:
            check = 0xFFFF
        struct.pack_into("!H", body, at, check)
        return self._header(len(body)) + bytes(body)

    def _transport(self) -> bytes:
        if self.protocol == TCP:
            head = struct.pack(
                "!HHIIHHHH", self.sport, self.dport, 1, 2, 5 << 12 | self.flags, 9, 0, 0
            )
        elif self.protocol == UDP:
            head = struct.pack("!HHHH", self.sport, self.dport, 8 + len(self.payload), 0)
        else:
            kind = {(ICMP, True): 8, (ICMP6, True): 128, (ICMP, False): 0, (ICMP6, False): 129}
            ident = self.sport if self.asks else self.dport
            head = struct.pack("!BBHHH", kind[self.protocol, self.asks], 0, 0, ident, 7)
        return head + self.payload

    def _pseudo(self, length: int) -> bytes:
        ends = self.source.packed + self.destination.packed
        return ends + struct.pack("!IHBB", length, 0, 0, self.protocol)

    def _header(self, length: int) -> bytes:
        ends = self.source.packed + self.destination.packed
        if not self.v4:
            return (
                struct.pack("!IHBB", 6 << 28 | self.tos << 20, length, self.protocol, self.hops)
                + ends
            )
        words = 5 + self.options
        head = bytearray(
            struct.pack(
                "!BBHHHBBH",
                0x40 | words,
                self.tos,
                words * 4 + length,
                self.ident,
                0x4000,
                self.hops,
                self.protocol,
                0,
            )
            + ends
            + b"\1" * 4 * self.options
        )
        struct.pack_into("!H", head, 10, 0xFFFF - _sum(bytes(head)))
        return bytes(head)


def _sum(data: bytes) -> int:
    """Ones' complement sum (RFC 1071): 1 to 0xffff, or 0 of nothing but zeros."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (total - 1) % 0xFFFF + 1 if total else 0


Flow = tuple[int, Address, int, Address, int]
"""Protocol, pod, port, remote, port."""


@dataclass
class Expected:
    """What is to become of a packet; ``packet`` None: it is dropped, or left as it is."""

    counter: str
    packet: Packet | None = None
    fresh: bool = False
    """The port is yet to be seen: that of ``packet`` doesn't count."""


@dataclass
class Oracle:
    """The node's state: which flows there are, and their ports."""

    pods: tuple[str, ...]
    spared: tuple[str, ...]
    routes: tuple[tuple[str, str], ...]
    """Prefixes, the longest first, with the source of what goes there."""
    first: int
    last: int
    flows: dict[Flow, tuple[Address, int]] = field(default_factory=dict)
    taken: dict[tuple[int, Address, int, Address, int], Flow] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def out(self, packet: Packet) -> Expected:
        """A pod's."""
        if not self._within(packet.source, self.pods):
            return Expected("pass_other")
        if self._within(packet.destination, (*self.pods, *self.spared)):
            return Expected("pass_excluded")
        if packet.hops == 1:
            return Expected("pass_ttl")
        flow = self._flow(packet)
        if flow in self.flows:
            return Expected("sent", self._left(packet, *self.flows[flow]))
        ends = packet.flags & RST or packet.flags & (SYN | ACK) == SYN | ACK
        if (packet.protocol == TCP and ends) or not packet.asks:
            return Expected("drop_no_flow")
        source = self._source(packet.destination)
        return Expected("sent", self._left(packet, source, 0), fresh=True)

    def learn(self, packet: Packet, port: int) -> None:
        """A flow has got a port. AssertionError: not one that it may have."""
        assert self.first <= port <= self.last
        flow = self._flow(packet)
        source = self._source(packet.destination)
        key = (packet.protocol, source, port, packet.destination, flow[4])
        assert key not in self.taken, f"{flow} and {self.taken[key]} have one port"
        self.flows[flow] = source, port
        self.taken[key] = flow

    def answer(self, packet: Packet) -> Expected:
        """One that comes from outside, to an address of the node's."""
        is_port = packet.protocol in (TCP, UDP)
        if not is_port and packet.asks:
            return Expected("pass_other")
        if not self.first <= packet.dport <= self.last:
            return Expected("pass_other")
        remote_port = packet.sport if is_port else 0
        key = (packet.protocol, packet.destination, packet.dport, packet.source, remote_port)
        if key not in self.taken:
            return Expected("drop_unsolicited" if is_port else "pass_local")
        if packet.hops == 1:
            return Expected("drop_ttl")
        _, pod, port, _, _ = self.taken[key]
        return Expected("sent", replace(packet, destination=pod, dport=port, hops=packet.hops - 1))

    def _flow(self, packet: Packet) -> Flow:
        remote_port = packet.dport if packet.protocol in (TCP, UDP) else 0
        port = packet.sport if packet.asks else packet.dport
        return packet.protocol, packet.source, port, packet.destination, remote_port

    def _left(self, packet: Packet, source: Address, port: int) -> Packet:
        left = replace(packet, source=source, hops=packet.hops - 1)
        return replace(left, sport=port) if packet.asks else replace(left, dport=port)

    def _within(self, address: Address, prefixes: tuple[str, ...]) -> bool:
        return any(address in ip_network(each) for each in prefixes)

    def _source(self, destination: Address) -> Address:
        return next(
            ip_address(source)
            for prefix, source in self.routes
            if destination in ip_network(prefix)
        )


def mostly(chance: Random, usual: int, *others: int) -> int:
    """The usual, or now and then another."""
    return chance.choice(others) if chance.random() < 0.05 else usual
