# SPDX-License-Identifier: Apache-2.0
"""Which rule a packet finds, by going through all of them; and rules that make it hard.

Prefixes are ranges of addresses here: masks, ranks, tuples and hashes are unknown.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from towpath.wildcard import Packet, Rule
from towpath.wildcard.rule import MAX_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.wildcard.rule import Prefix

EDGES = (0, 1, 79, 80, 81, 1023, 1024, 4095, 4096, 32767, 32768, 65534, 65535)
_BASES = {4: 0x0A000000, 6: 0x20010DB8_00000000_00000000_00000000}
_WIDTHS = {4: 32, 6: 128}
_LENGTHS = {
    4: (0, 1, 7, 8, 9, 15, 16, 24, 27, 28, 30, 31, 32),
    6: (0, 1, 3, 31, 32, 44, 45, 48, 63, 64, 65, 112, 127, 128),
}


class Oracle:
    """The rules that are in a table, and what a packet finds among them."""

    def __init__(self) -> None:
        self.rules: dict[int, Rule] = {}

    def insert(self, number: int, rule: Rule) -> None:
        """A rule has been inserted, and was given that number."""
        self.rules[number] = rule

    def lookup(self, packet: Packet) -> tuple[int, int]:
        """The number and value of the rule that wins, zeros if none matches."""
        matching = [
            (-rule.priority, number, rule.value)
            for number, rule in self.rules.items()
            if matches(rule, packet)
        ]
        if not matching:
            return 0, 0
        _, number, value = min(matching)
        return number, value

    def in_order(self) -> list[tuple[int, Rule]]:
        """All rules, those that win first."""
        return sorted(self.rules.items(), key=lambda pair: (-pair[1].priority, pair[0]))


def matches(rule: Rule, packet: Packet) -> bool:
    """Whether a rule matches a packet."""
    return (
        rule.version in (None, packet.source.version)
        and (rule.source is None or _is_in(rule.source, packet.source))
        and (rule.destination is None or _is_in(rule.destination, packet.destination))
        and rule.source_ports[0] <= packet.source_port <= rule.source_ports[1]
        and rule.destination_ports[0] <= packet.destination_port <= rule.destination_ports[1]
        and rule.protocol in (None, packet.protocol)
        and rule.vlan in (None, packet.vlan)
        and rule.ifindex in (None, packet.ifindex)
    )


def _is_in(prefix: Prefix, address: IPv4Address | IPv6Address) -> bool:
    return int(prefix.network_address) <= int(address) <= int(prefix.broadcast_address)


# ---- Rules that nest, overlap and tie; packets at their edges ------------------------------------


def network(version: int, length: int, host: int) -> Prefix:
    """The network of that length around an address of a small block."""
    width = _WIDTHS[version]
    address = (_BASES[version] + host) >> (width - length) << (width - length)
    if version == 4:
        return IPv4Network((address, length))
    return IPv6Network((address, length))


def hosts(version: int) -> st.SearchStrategy[int]:
    """Offsets within the block: near one another, or far apart in high bits."""
    near = st.sampled_from((0, 1, 2, 3, 15, 16, 255, 256, 65536))
    return near if version == 4 else near | st.sampled_from((1 << 64, 1 << 80, 3 << 80, 1 << 95))


def prefixes(version: int) -> st.SearchStrategy[Prefix]:
    """Prefixes of one family that contain one another more often than not."""
    return st.builds(network, st.just(version), st.sampled_from(_LENGTHS[version]), hosts(version))


def ports() -> st.SearchStrategy[tuple[int, int]]:
    """All ports, one, or a range, mostly with its ends where something changes."""
    edge = st.sampled_from(EDGES)
    ranges = st.tuples(edge, edge).map(lambda pair: (min(pair), max(pair)))
    return st.just((0, 65535)) | edge.map(lambda port: (port, port)) | ranges


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Rules of either family or both."""
    version = draw(st.sampled_from((4, 6, 4, 6, None)))
    either = st.none() | prefixes(version) if version else st.none()
    return Rule(
        draw(either),
        draw(either),
        draw(ports()),
        draw(ports()),
        draw(st.sampled_from((None, 6, 17, 0, 255))),
        draw(st.sampled_from((None, None, None, 0, 1, 4094))),
        draw(st.sampled_from((None, None, None, 1, 7, 70000))),
        draw(st.sampled_from((0, 0, 0, 1, 2, MAX_PRIORITY))),
        draw(st.sampled_from((0, 1, (1 << 64) - 1))),
    )


def packets_for(given: Iterable[Rule]) -> list[Packet]:
    """Packets at the edges of rules: first and last addresses and ports, and just outside."""
    return [
        Packet(
            source,
            destination,
            _port(rule.source_ports, at),
            _port(rule.destination_ports, at + 1),
            6 if rule.protocol is None else rule.protocol,
            (0, 1, 4094)[at % 3] if rule.vlan is None else rule.vlan,
            (0, 1, 9)[at % 3] if rule.ifindex is None else rule.ifindex,
        )
        for rule in given
        for version in ((4, 6) if rule.version is None else (rule.version,))
        for at, (source, destination) in enumerate(
            zip(_edges(rule.source, version), _edges(rule.destination, version), strict=True)
        )
    ]


def mixed_packets(given: Iterable[Rule], count: int) -> list[Packet]:
    """Packets of one family each that have their source of one of those, the rest of others."""
    edges = packets_for(given)
    chance = random.Random(len(edges))  # noqa: S311 -- not a secret
    found: list[Packet] = []
    while len(found) < count:
        one, other, third, fourth = chance.choices(edges, k=4)
        if one.source.version == other.source.version:
            found.append(
                Packet(
                    one.source,
                    other.destination,
                    third.source_port,
                    fourth.destination_port,
                    third.protocol,
                    fourth.vlan,
                    one.ifindex,
                )
            )
    return found


def _edges(prefix: Prefix | None, version: int) -> list[IPv4Address | IPv6Address]:
    make = IPv4Address if version == 4 else IPv6Address
    most = (1 << _WIDTHS[version]) - 1
    first = int(prefix.network_address) if prefix else 0
    last = int(prefix.broadcast_address) if prefix else most
    numbers = (first, last, max(first - 1, 0), min(last + 1, most), _BASES[version] + 1)
    return [make(number) for number in numbers]


def _port(ports: tuple[int, int], at: int) -> int:
    first, last = ports
    return (first, last, max(first - 1, 0), min(last + 1, 65535), (first + last) // 2)[at % 5]


def only_of(version: int, numbered: Mapping[int, Rule]) -> dict[int, Rule]:
    """The rules that one half of a table has."""
    return {number: rule for number, rule in numbered.items() if rule.version in (version, None)}
