# SPDX-License-Identifier: Apache-2.0
"""Which flows are others' when masquerade begins, by the kernel's list of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6

from towpath.datapath.masquerade.beginning import _of_pods, _ways
from towpath.kernel.net.conntrack_flows import Ends

PODS = (ip_network("10.244.0.0/24"), ip_network("fd00:1::/64"))
SPARED = (*PODS, ip_network("10.244.1.0/24"))
POD, OTHER, NODE, CLIENT, VIP = (
    *("10.244.0.2", "10.244.1.2", "192.0.2.1", "198.51.100.7", "10.96.0.10"),
)


def ends(source: str, sport: int, destination: str, port: int) -> Ends:
    """One direction, of UDP."""
    addresses = [ip_address(each) for each in (source, destination)]
    family = AF_INET if addresses[0].version == 4 else AF_INET6
    packed = [each.packed for each in addresses]
    return Ends(family, 17, *packed, *(each.to_bytes(2, "big") for each in (sport, port)))


def left(sent: Ends, answered: Ends) -> set[Ends]:
    """What of a flow is left to the stack."""
    return set(_of_pods(_ways(sent, answered), PODS, SPARED))


def test_an_answer_to_a_node_port_is_to_the_client_or_the_node() -> None:
    """The kernel may have translated the destination before it is seen."""
    asked, answered = ends(CLIENT, 40000, NODE, 30053), ends(POD, 53, NODE, 50000)
    assert left(asked, answered) == {answered, ends(POD, 53, CLIENT, 40000)}


def test_a_pods_request_has_the_services_address_or_the_others() -> None:
    """Unless nobody masquerades what is sent there."""
    asked = ends(POD, 40000, VIP, 53)
    assert left(asked, ends(OTHER, 53, POD, 40000)) == {asked}
    assert left(asked, ends(CLIENT, 53, NODE, 40000)) == {asked, ends(POD, 40000, CLIENT, 53)}


def test_what_is_of_no_pod_is_not_noted() -> None:
    """Nor what is between pods."""
    assert left(ends(CLIENT, 1, NODE, 2), ends(NODE, 2, CLIENT, 1)) == set()
    assert left(ends(POD, 1, OTHER, 2), ends(OTHER, 2, POD, 1)) == set()


def test_families_are_apart() -> None:
    """An address of one is none of the other's."""
    asked = ends("fd00:1::2", 1, "2001:db8::1", 2)
    assert left(asked, ends("2001:db8::1", 2, "2001:db8::9", 1)) == {asked}
    other = ends("::af4:2", 1, "2001:db8::1", 2)
    assert left(other, ends("2001:db8::1", 2, "::af4:2", 1)) == set()
