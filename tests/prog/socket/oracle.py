# SPDX-License-Identifier: Apache-2.0
"""Where a socket has to be sent, said a second time in plain Python, sharing no code."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from tests.unit.core.oracle_maglev import step, table, table_without

Address = IPv4Address | IPv6Address
TCP, UDP, ICMP = 6, 17, 1


class Member(NamedTuple):
    """A backend."""

    address: str
    weight: int = 1
    port: int = 0
    away: bool = False
    """It takes no new flows."""


@dataclass(frozen=True)
class Offer:
    """A service."""

    vip: str
    ports: tuple[tuple[int, int], ...]
    protocol: int
    members: tuple[Member, ...]
    keeps: int = 0
    """Seconds of affinity."""
    hash_by: str = "flow"
    restricted: bool = False
    size: int = 251

    @property
    def prefix(self) -> IPv4Network | IPv6Network | None:
        """Its addresses, if it is for more than one of them."""
        if "/" not in self.vip:
            return None
        return (IPv6Network if ":" in self.vip else IPv4Network)(self.vip)

    @property
    def exact(self) -> bool:
        """One address and one port."""
        return self.prefix is None and len(self.ports) == 1 and len(set(self.ports[0])) == 1

    def length(self) -> int:
        """Bits of its addresses that count."""
        if self.prefix is not None:
            return self.prefix.prefixlen
        return ip_address(self.vip).max_prefixlen

    def has(self, address: Address, port: int) -> bool:
        """Whether the address and port are among its own."""
        mine = address in self.prefix if self.prefix else address == ip_address(self.vip)
        return mine and any(first <= port <= last for first, last in self.ports)


class Outcome(NamedTuple):
    """A verdict, and where to."""

    verdict: str
    backend: str | None = None
    port: int | None = None


@dataclass
class Oracle:
    """Knows the services, and which clients were where."""

    seed: int
    offers: list[Offer] = field(default_factory=list)
    clients: dict[tuple[str, int], tuple[str, float]] = field(default_factory=dict)
    """By VIP and network namespace: a backend, and when a flow to it last began."""

    def offer(self, address: Address, port: int, protocol: int) -> Offer | None:
        """The service: one port of one address before all others, then by length of prefix."""
        those = [each for each in self.offers if each.protocol == protocol]
        those = [each for each in those if each.has(address, port)]
        return max(those, key=lambda each: (each.exact, each.length()), default=None)

    def decide(
        self, address: str, port: int, protocol: int, *, socket: int = 0, netns: int = 0,
        connects: int = 0, now: float = 0,
    ) -> Outcome:  # fmt: skip
        """What becomes of a call."""
        if protocol not in {TCP, UDP}:
            return Outcome("pass_protocol")
        offer = self.offer(ip_address(address), port, protocol)
        if offer is None:
            return Outcome("pass_no_service")
        if offer.restricted:
            return Outcome("pass_sources")
        member = self._kept(offer, netns, now) or self._slot(offer, socket, netns, connects, port)
        if member is None:
            return Outcome("refuse_no_backend")
        if (":" in member.address) != (":" in address):
            return Outcome("pass_family", member.address, member.port or port)
        return Outcome("balanced", member.address, member.port or port)

    def _kept(self, offer: Offer, netns: int, now: float) -> Member | None:
        backend, began = self.clients.get((offer.vip, netns), ("", 0.0))
        if not offer.keeps or now - began >= offer.keeps:
            return None
        return next((m for m in offer.members if m.address == backend and not m.away), None)

    def _slot(
        self, offer: Offer, socket: int, netns: int, connects: int, port: int
    ) -> Member | None:
        shares = [m for m in offer.members if m.weight]
        away = [at for at, member in enumerate(shares) if member.away]
        named = [(ip_address(m.address).packed, m.weight) for m in shares]
        slots = table_without(named, offer.size, away) if away else table(named, offer.size)
        if not slots:
            return None
        if offer.hash_by == "port":  # as it lies in a packet
            state = step(step(self.seed, int.from_bytes(port.to_bytes(2, "big"), "little")), 0)
        elif offer.keeps or offer.hash_by == "client":
            state = step(step(self.seed, netns), 0)
        else:
            state = step(step(step(self.seed, socket), connects), 0)
        return shares[slots[(state >> 32) * len(slots) >> 32]]
