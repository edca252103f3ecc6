# SPDX-License-Identifier: Apache-2.0
"""Where packets go is known by service, and a change costs what it changes."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from towpath.core.lb.options import Options
from towpath.datapath.lb.destinations import Destinations
from towpath.datapath.lb.services import Installed
from towpath.datapath.neigh.next_hops import Destination
from towpath.model import Backend, Protocol, ServiceKey, Source

if TYPE_CHECKING:
    from towpath.model.service import Forwarding, Scope

ONE, OTHER, HERE = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.9"))
TUNNEL = IPv4Address("198.51.100.1")


def installed(
    number: int, *addresses: IPv4Address, forwarding: Forwarding = "dsr", scope: Scope = "all"
) -> Installed:
    """A service with backends."""
    key = ServiceKey(IPv4Address("203.0.113.10"), number, Protocol.TCP, scope)
    made = Installed(key, number, Options(forwarding=forwarding))
    made.noted.add([Backend(each) for each in addresses], range(len(addresses)))
    return made


@pytest.fixture
def kept() -> Destinations:
    """Of a node whose tunnels come from one address, and that is a backend itself."""
    return Destinations(Source(ipv4=TUNNEL), lambda _, backend: backend.address == HERE)


def test_each_forwarding_has_its_own(kept: Destinations) -> None:
    """A tunnel's source, the link itself, and nothing more of what is translated."""
    services = [
        installed(1, ONE, HERE),
        installed(2, ONE, forwarding="l2"),
        installed(3, ONE, forwarding="snat"),
        installed(4, OTHER, scope="node"),
    ]
    kept.begin({each.key: each for each in services})
    assert list(kept) == [
        Destination(ONE, TUNNEL),
        Destination(ONE, None, on_link=True),
        Destination(ONE),
    ]


def test_changes_are_told_and_nothing_else(kept: Destinations) -> None:
    """A weight is no other place; a backend, a forwarding, a service that goes are."""
    one, other = installed(1, ONE), installed(2, OTHER)
    services = {each.key: each for each in (one, other)}
    kept.begin(services)
    one.noted.set(Backend(ONE, 7), 0)
    assert not kept.change(services, [one.key, other.key])
    one.noted.add([Backend(OTHER)], [1])
    assert not kept.change(services, [other.key])
    assert kept.change(services, [one.key])
    assert list(kept) == [Destination(each, TUNNEL) for each in (ONE, OTHER, OTHER)]
    other.options = Options(forwarding="l2")
    assert kept.change(services, [other.key])
    del services[one.key]
    assert kept.change(services, [one.key])
    assert list(kept) == [Destination(OTHER, None, on_link=True)]
    assert not kept.change(services, [one.key])
    kept.begin({})
    assert not list(kept)


def test_a_backend_on_this_node_is_no_destination(kept: Destinations) -> None:
    """A service with no other has none."""
    services = {each.key: each for each in (installed(1, HERE),)}
    kept.begin(services)
    assert not list(kept)
    assert not kept.change(services, services)
