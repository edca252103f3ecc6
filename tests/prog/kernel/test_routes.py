# SPDX-License-Identifier: Apache-2.0
"""Asking the kernel's routes for next hops, compared with the routes that iproute2 has made."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.prog.kernel.conftest import ip

from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.routes import NO_ROUTE, Hop, Question, Route, routes

COMPATIBLE = Path("/proc/sys/net/ipv4/nexthop_compat_mode")


@pytest.fixture
def routed(veth: int) -> int:
    """Addresses and routes of every kind on tp0; returns its index."""
    ip("addr add 192.0.2.1/24 dev tp0")
    ip("addr add 2001:db8::1/64 dev tp0 nodad")
    ip("link set lo up")
    for route in (
        "10.0.0.0/8 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "10.1.0.0/16 via 192.0.2.9 mtu 1400 src 192.0.2.1",
        "10.2.0.0/16 via inet6 fe80::5 dev tp0",
        "blackhole 10.4.0.0/16",
        "unreachable 10.5.0.0/16",
        "prohibit 10.6.0.0/16",
        "blackhole 2001:db8:4::/48",
        "unreachable 2001:db8:5::/48",
        "prohibit 2001:db8:6::/48",
    ):
        ip(f"route add {route}")
    ip("-6 route add 2001:db8:1::/48 nexthop via 2001:db8::2 nexthop via fe80::3 dev tp0")
    return veth


def asked(destination: str, source: str | None = None, mark: int = 0) -> Route:
    """Return the route of one destination."""
    of = ip_address(source) if source else None
    (found,) = routes([Question(ip_address(destination), of, mark)])
    return found


def hops(device: int, *gateways: str | None) -> tuple[Hop, ...]:
    """Next hops that are all on one device."""
    return tuple(Hop(device, ip_address(each) if each else None) for each in gateways)


@pytest.mark.parametrize(
    ("destination", "gateways"),
    [
        ("192.0.2.50", (None,)),
        ("2001:db8::9", (None,)),
        ("10.9.0.1", ("192.0.2.2", "192.0.2.3")),
        ("10.1.0.1", ("192.0.2.9",)),
        ("10.2.0.1", ("fe80::5",)),
        ("2001:db8:1::1", ("2001:db8::2", "fe80::3")),
    ],
)
def test_all_next_hops_of_a_route_are_found(
    routed: int, destination: str, gateways: tuple[str | None, ...]
) -> None:
    """On the link, by one gateway or several, and by one of the other family."""
    found = asked(destination)
    assert found.forwards
    assert set(found.hops) == set(hops(routed, *gateways))


def test_source_and_mtu_of_a_route_are_told(routed: int) -> None:
    """What a route says of itself, and no more."""
    found = asked("10.1.0.1")
    assert (found.source, found.mtu) == (ip_address("192.0.2.1"), 1400)
    assert asked("10.9.0.1").mtu == 0
    assert routed


@pytest.mark.parametrize(
    ("destination", "kind"),
    [
        ("192.0.2.1", "local"),
        ("2001:db8::1", "local"),
        ("192.0.2.255", "broadcast"),
        ("10.4.0.1", "blackhole"),
        ("10.5.0.1", "unreachable"),
        ("10.6.0.1", "prohibit"),
        ("2001:db8:4::1", "blackhole"),
        ("2001:db8:5::1", "unreachable"),
        ("2001:db8:6::1", "prohibit"),
        ("198.51.100.1", "none"),
        ("2001:db9::1", "none"),
    ],
)
def test_a_route_that_leads_nowhere_says_why(routed: int, destination: str, kind: str) -> None:
    """Each type of route, and none at all."""
    found = asked(destination)
    assert found.kind == kind
    assert not found.forwards
    assert routed


@pytest.mark.parametrize("compatible", ["1", "0"])
def test_next_hop_objects_are_followed(routed: int, compatible: str) -> None:
    """Also where the kernel tells their number only."""
    COMPATIBLE.write_text(compatible)
    for command in (
        "nexthop add id 7 via 192.0.2.77 dev tp0",
        "nexthop add id 8 via 192.0.2.78 dev tp0",
        "nexthop add id 9 group 7/8",
        "nexthop add id 10 blackhole",
        "route add 10.7.0.0/16 nhid 7",
        "route add 10.8.0.0/16 nhid 9",
        "route add 10.10.0.0/16 nhid 10",
    ):
        ip(command)
    assert asked("10.7.0.1").hops == hops(routed, "192.0.2.77")
    assert asked("10.8.0.1").hops == hops(routed, "192.0.2.77", "192.0.2.78")
    assert not asked("10.10.0.1").forwards


def test_rules_are_followed(routed: int) -> None:
    """By source and by mark."""
    ip("route add 10.9.0.0/16 via 192.0.2.20 table 100")
    ip("rule add from 192.0.2.1 lookup 100")
    ip("route add 10.9.0.0/16 via 192.0.2.21 table 101")
    ip("rule add fwmark 5 lookup 101 priority 10")
    assert asked("10.9.0.1").hops == hops(routed, "192.0.2.2", "192.0.2.3")
    assert asked("10.9.0.1", "192.0.2.1").hops == hops(routed, "192.0.2.20")
    assert asked("10.9.0.1", mark=5).hops == hops(routed, "192.0.2.21")


def test_a_link_without_carrier_is_no_way(routed: int) -> None:
    """What the kernel calls dead is left out; a device that is down has no routes."""
    ip("link set tp0 down")
    assert asked("10.9.0.1") == NO_ROUTE
    assert routed


def test_many_are_asked_at_once(routed: int) -> None:
    """Each gets its own answer, in order."""
    wanted = ["192.0.2.7", "10.1.0.1", "198.51.100.1"] * 1000
    found = routes(Question(ip_address(each)) for each in wanted)
    assert found == [asked("192.0.2.7"), asked("10.1.0.1"), NO_ROUTE] * 1000
    assert device_index("tp0") == routed
