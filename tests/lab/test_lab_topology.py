# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of the lab."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from towpath.lab.errors import LabError
from towpath.lab.topology import (
    CORE_MTU,
    MAX_BACKENDS,
    VIP4,
    VIP6,
    Topology,
)

DOCUMENTATION: list[IPv4Network | IPv6Network] = [
    *map(IPv4Network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")),
    IPv6Network("2001:db8::/32"),
]


def test_every_address_is_one_for_documentation() -> None:
    """No lab, however large, uses an address that could be somebody's."""
    links = Topology(MAX_BACKENDS).links
    used = [one.ip for link in links for one in (*link.of_router, *link.of_node)]
    for address in (VIP4, VIP6, *used):
        assert any(address in network for network in DOCUMENTATION)


def test_no_address_and_no_network_is_used_twice() -> None:
    """The largest lab's links do not overlap."""
    links = Topology(MAX_BACKENDS).links
    for networks in ([link.ipv4 for link in links], [link.ipv6 for link in links]):
        assert len(set(networks)) == len(links)
    addresses = [one.ip for link in links for one in (*link.of_router, *link.of_node)]
    assert len(set(addresses)) == len(addresses)
    for i, link in enumerate(links):
        assert not any(link.ipv4.overlaps(other.ipv4) for other in links[:i])


def test_links_behind_the_router_have_room_for_an_outer_header() -> None:
    """A client's largest packet, wrapped in IPv6, fits the balancer's and backends' links."""
    topology = Topology()
    for link in (topology.balancer, *topology.backend_links):
        assert link.mtu == CORE_MTU >= topology.client.mtu + 40


@pytest.mark.parametrize("backends", [-1, 0, MAX_BACKENDS + 1])
def test_a_number_of_backends_without_room_is_refused(backends: int) -> None:
    """The message says what is allowed."""
    with pytest.raises(LabError, match=f"backends: {backends}; allowed: 1 to {MAX_BACKENDS}"):
        Topology(backends)


def test_a_namespace_is_named_with_or_without_its_prefix() -> None:
    """A wrong name is answered by those there are."""
    topology = Topology(2)
    assert topology.namespace("be2") == topology.namespace("tp-be2") == "tp-be2"
    with pytest.raises(LabError, match="no namespace be3; there are: tp-router, tp-client, tp-lb"):
        topology.namespace("be3")
