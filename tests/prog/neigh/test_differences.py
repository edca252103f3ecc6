# SPDX-License-Identifier: Apache-2.0
"""Whether flows' ways may differ, as routes and rules have it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.neigh.conftest import Network, ip, ip_batch
from tests.prog.neigh.test_follower import wait
from tests.prog.neigh.test_keeper import to

from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.report import report
from towpath.documents import Doubtful
from towpath.kernel.net import selectors
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.routes import LOOKED_AT, Differences, differences, several_ways

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.neigh.differences import ByVersion


@pytest.fixture
def told(network: Network) -> Iterator[list[ByVersion]]:
    """What a follower has told, of destinations behind 10.1/16 and 2001:db8:1::/48."""
    assert network
    found: list[ByVersion] = []
    with Follower() as follower:
        follower.want("test", to("10.1.0.1", "2001:db8:1::1"))
        follower.tell(found.append)
        wait(lambda: found)
        yield found
        follower.tell(None)


def now(told: list[ByVersion], version: int) -> set[str]:
    """What is so by now, of a family."""
    return {field for field, so in told[-1][version == 6]._asdict().items() if so}


@pytest.mark.parametrize(
    ("version", "rule", "expected"),
    [
        (4, "tos 0x10", {"fields"}),
        (4, "ipproto tcp", {"fields"}),
        (4, "ipproto udp sport 53", {"fields"}),
        (6, "dport 80-90", {"fields"}),
        (6, "tos 0x10", {"fields"}),
        (4, "from 192.0.2.0/25", {"sources"}),
        (6, "from 2001:db8::/65", {"sources"}),
        (4, "to 192.0.2.0/25", set()),
        (4, "fwmark 7", set()),
        (6, "iif lo", set()),
    ],
)
def test_rules(told: list[ByVersion], version: int, rule: str, expected: set[str]) -> None:
    """Those that look at what flows of the same hosts differ in, of their family only."""
    assert now(told, version) == set()
    ip(f"-{version} rule add {rule} lookup 100")
    ip(f"-{version} rule add tos 0x08 lookup 101")  # after which it has been told
    wait(lambda: "fields" in now(told, version))
    ip(f"-{version} rule del tos 0x08 lookup 101")
    wait(lambda: now(told, version) == expected)
    assert now(told, 10 - version) == set()
    ip(f"-{version} rule del {rule} lookup 100")
    wait(lambda: now(told, version) == set())


@pytest.mark.parametrize(
    ("version", "prefix", "behind"),
    [(4, "192.0.2.", "10.1.0.0/16"), (6, "2001:db8::", "2001:db8:1::/48")],
)
def test_several_ways(told: list[ByVersion], version: int, prefix: str, behind: str) -> None:
    """To a destination that is wanted, and to somewhere."""
    hops = f"nexthop via {prefix}2 dev n0 nexthop via {prefix}3 dev n0"
    other = "2001:db8:2::/48" if version == 6 else "10.2.0.0/16"
    ip(f"-{version} route add {other} {hops}")
    wait(lambda: now(told, version) == {"clients"})
    ip(f"-{version} route add {behind} {hops}")
    wait(lambda: now(told, version) == {"clients", "backends"})
    ip(f"-{version} route replace {behind} via {prefix}2")
    wait(lambda: now(told, version) == {"clients"})
    assert now(told, 10 - version) == set()
    assert several_ways() == {version: True, 10 - version: False}
    ip(f"-{version} route del {other}")
    assert several_ways() == {4: False, 6: False}


def test_routes_for_some_sources(network: Network) -> None:
    """Those of IPv6 may be, where the kernel has it."""
    assert network
    alike = Differences(several=False, sources=False)
    assert differences() == {4: alike, 6: alike}
    ip("-6 route add 2001:db8:2::/48 from 2001:db8:7::/48 via 2001:db8::2")
    assert differences() == {4: alike, 6: Differences(several=False, sources=True)}
    ip("-6 route del 2001:db8:2::/48 from 2001:db8:7::/48 via 2001:db8::2")
    assert differences() == {4: alike, 6: alike}


def test_two_routes_of_one_metric(network: Network) -> None:
    """The kernel takes the first; who is behind it is told, and nobody else."""
    assert network
    ip("route add 10.1.0.0/16 via 192.0.2.2 dev n0 metric 5")
    ip("route add 10.1.0.0/16 via 192.0.2.3 dev n0 metric 6")
    ip("route add 10.1.0.0/16 via 192.0.2.3 dev n0 metric 5 table 7")
    ip("route add 10.2.0.0/16 via 192.0.2.2 dev n0")
    assert not differences()[4].doubled
    ip("route append 10.1.0.0/16 via 192.0.2.3 dev n0 metric 5")
    with Follower() as follower:
        follower.want("test", to("10.1.0.1", "10.2.0.1", "2001:db8:1::1"))
        wait(lambda: follower.asked(lambda keeper: keeper.ways))
        told = follower.asked(report).doubtful
    assert told == (
        Doubtful(
            ip_address("10.1.0.1"),
            "there are two routes to 10.1.0.0/16 of one metric; the first is taken",
            "two_routes",
        ),
    )


def test_nexthop_objects_are_looked_into(network: Network) -> None:
    """Where the kernel doesn't spell them out."""
    Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text("0")
    assert network
    ip("nexthop add id 1 via 192.0.2.2 dev n0")
    ip("nexthop add id 2 via 192.0.2.3 dev n0")
    ip("nexthop add id 3 group 1/2")
    ip("route add 10.2.0.0/16 nhid 1")
    assert not several_ways()[4]
    ip("route add 10.3.0.0/16 nhid 3")
    assert several_ways()[4]


def test_a_large_table_is_not_read_to_its_end(network: Network) -> None:
    """It costs the same then, whatever its size."""
    assert network
    ip_batch(f"route add 10.{n >> 8}.{n & 255}.0/24 dev n0" for n in range(100))
    with Netlink(ROUTE) as netlink:
        found = netlink.first(26, bytes((2, *[0] * 11)), 10)
        assert len(found) == 10
        assert LOOKED_AT >= 10_000


def test_a_namespace_without_rules_of_ones_own(network: Network) -> None:
    """Those that are there from the beginning look at nothing."""
    assert network
    with Netlink(ROUTE) as netlink:
        assert {any(each) for each in selectors.dump(netlink).values()} == {False}
