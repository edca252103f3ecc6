# SPDX-License-Identifier: Apache-2.0
"""Services that are not for everyone: sources outside of allow_from are refused, and counted."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NOT_FOR_YOU, TX

from towpath.model.kinds import Prefixes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

Prefix = IPv4Network | IPv6Network
CLIENTS = {4: ip_address("198.51.100.7"), 6: ip_address("2001:db8:3::7")}
LISTS = examples(60, 8)


def prefixes(*texts: str) -> tuple[Prefix, ...]:
    """A list as a service has it."""
    return Prefixes().parse(list(texts)) or ()


def allowing(family: int, *texts: str, **options: Any) -> Service:
    """The usual service, for these sources."""
    return service(VIPS[family], *NEAR[family], allow_from=prefixes(*texts), **options)


def sent_by(source: Address, **fields: Any) -> bytes:
    """A frame of a client."""
    return frame(source.version, source=source, **fields)


def edges(prefix: Prefix) -> Iterator[Address]:
    """First and last address of a prefix, and those beside them."""
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    for number in (first - 1, first, last, last + 1):
        if 0 <= number < 1 << prefix.max_prefixlen:
            yield type(prefix.network_address)(number)


def stored(rig: Rig) -> int:
    """How many prefixes there are in the kernel."""
    return len(rig.balancer._program.maps["sources"].snapshot()[0])


# ---- Who may -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("family", [4, 6])
def test_every_length_of_prefix(rig: Rig, family: int) -> None:
    """From all addresses to a single one: inside it is balanced, a step outside it is not."""
    for length in range(CLIENTS[family].max_prefixlen + 1):
        network = ip_network(f"{CLIENTS[family]}/{length}", strict=False)
        rig.serve(allowing(family, str(network)))
        for source in edges(network):
            rig.expect(sent_by(source), TX if source in network else NOT_FOR_YOU)


def random_list(family: int, random: Random) -> list[str]:
    """Many prefixes of all lengths, within each other and apart."""
    bits = CLIENTS[family].max_prefixlen
    return [
        str(ip_network((int(CLIENTS[family]) ^ random.getrandbits(spread), length), strict=False))
        for spread, length in (
            (random.choice((8, 16, 24)), random.randint(bits - 24, bits))
            for _ in range(random.randint(1, 30))
        )
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_any_list(rig: Rig, family: int) -> None:
    """At the edges of each of its prefixes."""
    random = Random(family)  # noqa: S311 - to be the same again
    rig.seen.clear()
    for _ in range(LISTS):
        wanted = allowing(family, *random_list(family, random))
        rig.serve(wanted)
        for each in wanted.allow_from or ():
            for source in edges(each):
                rig.check(sent_by(source))
    assert rig.seen.keys() == {TX, NOT_FOR_YOU}
    assert min(rig.seen.values()) > rig.seen.total() // 5


def test_families_are_apart(rig: Rig) -> None:
    """An IPv6 address whose last bits are those of an IPv4 prefix isn't in that prefix."""
    v4, both = IPv4Network("198.51.100.0/24"), ("198.51.100.0/24", "2001:db8:3::/48")
    rig.serve(allowing(4, *both), allowing(6, *both))
    rig.expect(sent_by(v4[7]), TX)
    rig.expect(sent_by(IPv6Address("2001:db8:3::7")), TX)
    for prefix in (0, 0xFFFF << 32):
        rig.expect(sent_by(IPv6Address(prefix + int(v4[7]))), NOT_FOR_YOU)
    rig.serve(allowing(4, "::/0", "192.0.2.1"), allowing(6, "0.0.0.0/0", "2001:db8:3::1"))
    rig.expect(sent_by(v4[7]), NOT_FOR_YOU)
    rig.expect(sent_by(IPv6Address("2001:db8:3::7")), NOT_FOR_YOU)


@pytest.mark.parametrize("options", [{}, {"flow_table": False}, {"forwarding": "l2"}])
@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_known_flows_are_checked(rig: Rig, family: int, options: dict[str, Any]) -> None:
    """Whom a service is no longer for is refused at once; let in again, its flow is still known."""
    rig.serve()
    client = CLIENTS[family]
    inside, outside = (str(each) for each in (client, client + 1))
    for allowed, verdict in ((inside, TX), (inside, TX), (outside, NOT_FOR_YOU), (inside, TX)):
        rig.serve(allowing(family, allowed, **options))
        outcome = rig.expect(sent_by(client), verdict)
    assert outcome.fresh == ("flow_table" in options)


def test_other_services_are_for_everyone(rig: Rig) -> None:
    """Another port of the VIP, another VIP; each list is that of its service."""
    client = CLIENTS[4]
    rig.serve(
        allowing(4, "192.0.2.0/24"),
        allowing(4, str(client), port=81),
        service(VIPS[4], *NEAR[4], port=82),
        service(VIPS[4] + 1, *NEAR[4]),
    )
    rig.expect(sent_by(client), NOT_FOR_YOU)
    for fields in ({"dport": 81}, {"dport": 82}, {"vip": VIPS[4] + 1}):
        rig.expect(sent_by(client, **fields), TX)


def test_equal_lists_are_kept_once(rig: Rig) -> None:
    """However they are written; the list stays as long as one service has it."""
    rig.serve()
    rig.balancer._contents.tables.rows._reclaimer.reclaim()
    assert stored(rig) == 0
    rig.serve(
        allowing(4, "198.51.100.0/24", "203.0.113.0/24"),
        allowing(4, "203.0.113.0/24", "198.51.100.128/25", "198.51.100.0/25", port=81),
        allowing(4, "203.0.113.0/24", port=82),
    )
    assert stored(rig) == 3
    rig.serve(allowing(4, "198.51.100.0/24", "203.0.113.0/24", port=81))
    rig.balancer._contents.tables.rows._reclaimer.reclaim()
    assert stored(rig) == 2
    rig.expect(sent_by(CLIENTS[4], dport=81), TX)
