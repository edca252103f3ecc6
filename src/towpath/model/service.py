# SPDX-License-Identifier: Apache-2.0
"""Services and their backends: what the load balancer is wished to do.

Plain data. Making an object checks nothing, so that what the kernel holds can
be described even when it is wrong; :func:`towpath.model.check_services` and
:func:`towpath.model.parse_config` do the checking.
"""

import enum
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from towpath.model.kinds import PORT, Address, Flag, Integer, Name, Prime, UnicastAddress, Word

# Read by pydantic when it makes a schema of a dataclass.
PYDANTIC = {"extra": "forbid", "use_attribute_docstrings": True}

SMALLEST_TABLE = 251
LARGEST_TABLE = 4194301
DEFAULT_TABLE = 16381
MOST_WEIGHT = 65535


class Protocol(enum.StrEnum):
    """Transport protocols that can be balanced."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """IPPROTO_TCP or IPPROTO_UDP."""
        return 6 if self is Protocol.TCP else 17


def endpoint(address: Address, port: int) -> str:
    """Return ``192.0.2.1:80`` or ``[2001:db8::1]:80``."""
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"


class ServiceKey(NamedTuple):
    """What identifies a service: the packets it is for."""

    vip: Address
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{endpoint(self.vip, self.port)}/{self.protocol}"

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sorts keys of both families: IPv4 first, then by address, port, protocol."""
        return self.vip.version, int(self.vip), self.port, self.protocol.number


@dataclass(frozen=True, slots=True)
class Backend:
    """A host that packets of a service are sent to."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    address: Annotated[Address, UnicastAddress()]
    """Where encapsulated packets are sent to. Identifies the backend in its service."""
    weight: Annotated[int, Integer(0, MOST_WEIGHT)] = 1
    """Share of new flows, relative to the service's other backends. 0: no new flows."""


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual address and port, and the backends that share its flows."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, Name()]
    """What people call it. Changing it does not touch a packet."""
    vip: Annotated[Address, UnicastAddress()]
    """Address that clients connect to."""
    port: Annotated[int, PORT]
    """Port that clients connect to."""
    protocol: Annotated[Protocol, Word(of=Protocol)] = Protocol.TCP
    """Transport protocol."""
    backends: tuple[Backend, ...] = ()
    """In any order: the order has no influence. None: packets are dropped and counted."""
    forwarding: Annotated[Literal["dsr"], Word("dsr")] = "dsr"
    """How packets reach backends. dsr: in a tunnel, backends answer the client directly."""
    table_size: Annotated[int, Prime(SMALLEST_TABLE, LARGEST_TABLE)] = DEFAULT_TABLE
    """Slots of the Maglev table. A prime, best above 100 times the number of backends."""
    flow_table: Annotated[bool, Flag()] = True
    """Whether flows are remembered, so that they keep their backend while tables change."""

    @property
    def key(self) -> ServiceKey:
        """What identifies the service, whatever its name."""
        return ServiceKey(self.vip, self.port, self.protocol)
