# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and routes of the lab: plain data, nothing is touched here.

Everything follows from the number of backends. Addresses are those set aside for
documentation (RFC 5737, RFC 3849), so they belong to nobody:

- clients: 198.51.100.0/24 and 2001:db8:1::/64
- the load balancer (number 0) and backends (1, 2, ...): a network of their own
  each, 192.0.2.0/30, .4/30, ... and 2001:db8:2::/64, 2001:db8:2:1::/64, ...
- VIPs: 203.0.113.10 and 2001:db8:ff::10
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from towpath.lab.errors import LabError

Interface = IPv4Interface | IPv6Interface

PREFIX = "tp-"
CLIENT = "tp-client"
ROUTER = "tp-router"
BALANCER = "tp-lb"

# The device of every node but the router.
DEVICE = "eth0"

VIP4 = IPv4Address("203.0.113.10")
VIP6 = IPv6Address("2001:db8:ff::10")
VIP4_NETWORK = IPv4Network("203.0.113.0/24")
VIP6_NETWORK = IPv6Network("2001:db8:ff::/64")

# 192.0.2.0/24 has 64 networks of four addresses; the first is the balancer's.
MAX_BACKENDS = 63

# Clients see the usual 1500. Behind the router a packet is up to 40 bytes (an
# IPv6 header) longer, and the balancer must not have to fragment or refuse it.
CLIENT_MTU = 1500
CORE_MTU = 1600

# A client host with several addresses stands for several clients.
CLIENT_ADDRESSES = 4


@dataclass(frozen=True, slots=True)
class Link:
    """A routed veth link: a node's eth0 and, in the router, a device named port."""

    node: str
    port: str
    ipv4: IPv4Network
    ipv6: IPv6Network
    mtu: int
    addresses: int = 1

    @property
    def router4(self) -> IPv4Interface:
        """The router's end: the first address of the network."""
        return IPv4Interface((self.ipv4.network_address + 1, self.ipv4.prefixlen))

    @property
    def router6(self) -> IPv6Interface:
        """The router's end: the first address of the network."""
        return IPv6Interface((self.ipv6.network_address + 1, self.ipv6.prefixlen))

    @property
    def node4(self) -> list[IPv4Interface]:
        """The node's addresses: those that follow the router's."""
        first = self.ipv4.network_address + 2
        return [IPv4Interface((first + i, self.ipv4.prefixlen)) for i in range(self.addresses)]

    @property
    def node6(self) -> list[IPv6Interface]:
        """The node's addresses: those that follow the router's."""
        first = self.ipv6.network_address + 2
        return [IPv6Interface((first + i, self.ipv6.prefixlen)) for i in range(self.addresses)]

    @property
    def of_router(self) -> list[Interface]:
        """Both of the router's addresses."""
        return [self.router4, self.router6]

    @property
    def of_node(self) -> list[Interface]:
        """All of the node's addresses."""
        return [*self.node4, *self.node6]


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole lab; raises LabError for a number of backends it has no room for."""

    backends: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.backends <= MAX_BACKENDS:
            raise LabError(f"backends: {self.backends}; allowed: 1 to {MAX_BACKENDS}")

    @property
    def client(self) -> Link:
        """The client's link, with several addresses on the client's end."""
        return Link(
            node=CLIENT,
            port="client",
            ipv4=IPv4Network("198.51.100.0/24"),
            ipv6=IPv6Network("2001:db8:1::/64"),
            mtu=CLIENT_MTU,
            addresses=CLIENT_ADDRESSES,
        )

    @property
    def balancer(self) -> Link:
        """The balancer's only link: packets arrive and leave by it."""
        return _core_link(BALANCER, "lb", 0)

    @property
    def backend_links(self) -> list[Link]:
        """One link for each backend, tp-be1 first."""
        return [_core_link(f"{PREFIX}be{i}", f"be{i}", i) for i in range(1, self.backends + 1)]

    @property
    def links(self) -> list[Link]:
        """Every link there is."""
        return [self.client, self.balancer, *self.backend_links]

    @property
    def namespaces(self) -> list[str]:
        """Every namespace there is."""
        return [ROUTER, *(link.node for link in self.links)]

    def namespace(self, name: str) -> str:
        """The namespace a person means by ``be1`` or ``tp-be1``; LabError if none."""
        full = name if name.startswith(PREFIX) else PREFIX + name
        if full not in self.namespaces:
            raise LabError(f"no namespace {name}; there are: {', '.join(self.namespaces)}")
        return full


def _core_link(node: str, port: str, number: int) -> Link:
    ipv4 = int(IPv4Address("192.0.2.0")) + 4 * number
    ipv6 = int(IPv6Address("2001:db8:2::")) + (number << 64)
    return Link(node, port, IPv4Network((ipv4, 30)), IPv6Network((ipv6, 64)), CORE_MTU)
