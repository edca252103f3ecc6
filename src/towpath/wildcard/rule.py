# SPDX-License-Identifier: Apache-2.0
"""What a rule matches, and what a packet has that can be matched."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network
Ports: TypeAlias = tuple[int, int]
"""The first and the last of a range."""

MAX_PRIORITY = (1 << 20) - 1
_MAX_VALUE = (1 << 64) - 1
_MAX_IFINDEX = (1 << 31) - 1
_MAX_VLAN = 4094
_MAX_PORT = 65535
_MAX_PROTOCOL = 255

ANY_PORT: Ports = (0, _MAX_PORT)
_ALL: dict[int, Prefix] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "sctp": 132,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: packets that agree in everything given match; None matches every packet.

    Without an address it is for both families; with one of the two, the other is all
    addresses of that family. A packet gets the ``value`` of the rule
    with the highest ``priority`` that matches it, of equal ones the one inserted first.
    ValueError: something is out of its range; TypeError: something isn't of its type.
    """

    source: Prefix | None = None
    destination: Prefix | None = None
    source_ports: Ports = ANY_PORT
    destination_ports: Ports = ANY_PORT
    protocol: int | None = None
    vlan: int | None = None
    """VLAN identifier; 0 is a packet without a tag."""
    ifindex: int | None = None
    """Index of the ingress device."""
    priority: int = 0
    value: int = 0

    def __post_init__(self) -> None:
        _check_prefix("source", self.source)
        _check_prefix("destination", self.destination)
        if self.source and self.destination and self.source.version != self.destination.version:
            raise ValueError(
                f"source {self.source} is IPv{self.source.version}, destination "
                f"{self.destination} is IPv{self.destination.version}; allowed: both of one family"
            )
        if self.source and not self.destination:
            object.__setattr__(self, "destination", _ALL[self.source.version])
        elif self.destination and not self.source:
            object.__setattr__(self, "source", _ALL[self.destination.version])
        _check_ports("source_ports", self.source_ports)
        _check_ports("destination_ports", self.destination_ports)
        for name, number, least, most in (
            ("protocol", self.protocol, 0, _MAX_PROTOCOL),
            ("vlan", self.vlan, 0, _MAX_VLAN),
            ("ifindex", self.ifindex, 1, _MAX_IFINDEX),
        ):
            if number is not None:
                _check_number(name, number, least, most)
        _check_number("priority", self.priority, 0, MAX_PRIORITY)
        _check_number("value", self.value, 0, _MAX_VALUE)

    @classmethod
    def of(
        cls,
        source: str | Prefix | None = None,
        destination: str | Prefix | None = None,
        *,
        source_ports: str | int | Ports | None = None,
        destination_ports: str | int | Ports | None = None,
        protocol: str | int | None = None,
        vlan: int | None = None,
        ifindex: int | None = None,
        priority: int = 0,
        value: int = 0,
    ) -> Rule:
        """Make a rule of what people write: "10.0.0.0/8", "80-90" or 80, "tcp".

        An address without a length is a host. ValueError says what is wrong and allowed.
        """
        return cls(
            _prefix("source", source),
            _prefix("destination", destination),
            _ports("source_ports", source_ports),
            _ports("destination_ports", destination_ports),
            _protocol(protocol),
            vlan,
            ifindex,
            priority,
            value,
        )

    @property
    def version(self) -> int | None:
        """4 or 6, None for a rule of both families."""
        return self.source.version if self.source else None


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet, as far as rules are concerned. Where it has no ports or no tag, 0."""

    source: Address
    destination: Address
    source_port: int = 0
    destination_port: int = 0
    protocol: int = 0
    vlan: int = 0
    ifindex: int = 0

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise ValueError(
                f"source {self.source} is IPv{self.source.version}, destination "
                f"{self.destination} is IPv{self.destination.version}; allowed: both of one family"
            )
        for name, number, most in (
            ("source_port", self.source_port, _MAX_PORT),
            ("destination_port", self.destination_port, _MAX_PORT),
            ("protocol", self.protocol, _MAX_PROTOCOL),
            ("vlan", self.vlan, _MAX_VLAN + 1),
            ("ifindex", self.ifindex, _MAX_IFINDEX),
        ):
            _check_number(name, number, 0, most)


def _check_number(name: str, number: object, least: int, most: int) -> None:
    if type(number) is not int:
        raise TypeError(f"{name}: {number!r} is not a number; allowed: {least} to {most}")
    if not least <= number <= most:
        raise ValueError(f"{name}: {number}; allowed: {least} to {most}")


def _check_prefix(name: str, prefix: object) -> None:
    if prefix is not None and not isinstance(prefix, IPv4Network | IPv6Network):
        raise TypeError(
            f"{name}: {prefix!r} is not a network of the ipaddress module; allowed: one, or None"
        )


def _check_ports(name: str, ports: Ports) -> None:
    first, last = ports
    _check_number(name, first, 0, _MAX_PORT)
    _check_number(name, last, 0, _MAX_PORT)
    if first > last:
        raise ValueError(f"{name}: {first} to {last} is empty; allowed: the lower one first")


def _prefix(name: str, given: str | Prefix | None) -> Prefix | None:
    if not isinstance(given, str):
        return given
    try:
        return ip_network(given)
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}; allowed: a prefix such as 192.0.2.0/24 or 2001:db8::/32"
        ) from None


def _ports(name: str, given: str | int | Ports | None) -> Ports:
    if given is None:
        return ANY_PORT
    if isinstance(given, tuple):
        return given
    if isinstance(given, int):
        return given, given
    first, dash, last = given.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"{name}: {given!r}; allowed: a port or a range such as 80-90")
    return int(first), int(last) if dash else int(first)


def _protocol(given: str | int | None) -> int | None:
    if not isinstance(given, str):
        return given
    if given.isdecimal():
        return int(given)
    number = PROTOCOLS.get(given.lower())
    if number is None:
        names = ", ".join(PROTOCOLS)
        raise ValueError(f"protocol: {given!r}; allowed: {names}, or a number from 0 to 255")
    return number
