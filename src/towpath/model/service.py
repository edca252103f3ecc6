# SPDX-License-Identifier: Apache-2.0
"""Services and their backends: what the load balancer is wished to do.

Plain data. Making an object checks nothing, so that what the kernel holds can
be described even when it is wrong; :func:`towpath.model.check_services` and
:func:`towpath.model.parse_config` do the checking.
"""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from towpath.errors import NotFoundError
from towpath.model.health import Health, OnDown
from towpath.model.kinds import (
    PORT,
    Address,
    Duration,
    FieldError,
    Flag,
    Integer,
    IntegerSet,
    Name,
    OrNone,
    Ports,
    PortSet,
    Prefix,
    Prefixes,
    Prime,
    SourcePrefixes,
    UnicastAddress,
    UnicastAddresses,
    Vip,
    Word,
)
from towpath.model.problems import ConfigError, Problem
from towpath.model.quic import MAX_SERVER_ID, MAX_SERVER_IDS, Quic

# Read by pydantic when it makes a schema of a dataclass.
PYDANTIC = {"extra": "forbid", "use_attribute_docstrings": True}

MIN_TABLE = 251
MAX_TABLE = 4194301
DEFAULT_TABLE = 16381
MAX_WEIGHT = 65535
MAX_AFFINITY = 7 * 86400
# Of 16 bits that go round in 70 minutes at 1000 jiffies a second.
MAX_FLOW_TIMEOUT = 1800
_IPV6 = 6


Forwarding = Literal["dsr", "l2", "snat"]
Scope = Literal["all", "node"]
Encap = Literal["ipip", "gre", "fou", "gue", "gue0"]
HashBy = Literal["flow", "client", "port"]
UDP_ENCAPS = frozenset[Encap]({"fou", "gue", "gue0"})
GUE_PORT = 6080
"""Of GUE, as IANA has it; FOU has none."""


class Tunnel(NamedTuple):
    """What a tunnel has between its outer IP header and the packet."""

    encap: Encap = "ipip"
    port: int | None = None
    """That UDP goes to; None: there is no UDP."""


def tunnel_port(encap: Encap, given: int | None) -> int | None:
    """Return the UDP port that tunnels go to, None where there is no UDP."""
    return (given or GUE_PORT) if encap in UDP_ENCAPS else None


IPIP = Tunnel()


class Protocol(enum.StrEnum):
    """Transport protocols that can be balanced."""

    TCP = "tcp"
    UDP = "udp"

    # Equal texts have equal hashes; an enum's own takes three times as long.
    __hash__ = str.__hash__

    @property
    def number(self) -> int:
        """IPPROTO_TCP or IPPROTO_UDP."""
        return 6 if self is Protocol.TCP else 17


class BackendState(enum.StrEnum):
    """Whether a backend gets new flows, and whether those that it has go on."""

    ACTIVE = "active"
    """New flows by weight."""
    DRAINING = "draining"
    """No new flows; those it has go on. A person's wish."""
    QUARANTINED = "quarantined"
    """The same, as the finding of a health check."""
    DOWN = "down"
    """No new flows, and those it has go to others at once."""

    __hash__ = str.__hash__


def endpoint(address: Address | Prefix, port: int | Ports) -> str:
    """Return ``192.0.2.1:80`` or ``[2001:db8::1]:80``."""
    return f"[{address}]:{port}" if address.version == _IPV6 else f"{address}:{port}"


class ServiceKey(NamedTuple):
    """What identifies a service: the packets it is for."""

    vip: Address | Prefix
    port: int | Ports
    """One port as a number, more of them as a set."""
    protocol: Protocol
    scope: Scope = "all"
    """node: only for what begins on this node, at sockets and in pods' packets."""

    @property
    def ports(self) -> Ports:
        """The port or ports as a set."""
        return self.port if isinstance(self.port, Ports) else Ports.of([(self.port, self.port)])

    @property
    def exact(self) -> bool:
        """Whether it is for one address and one port."""
        return isinstance(self.port, int) and isinstance(self.vip, IPv4Address | IPv6Address)

    def __str__(self) -> str:
        where = "" if self.scope == "all" else f" ({self.scope})"
        return f"{endpoint(self.vip, self.port)}/{self.protocol}{where}"

    @property
    def order(self) -> tuple[int, int, int, tuple[tuple[int, int], ...], int, str]:
        """Sorts keys of both families: IPv4 first, then by address, port, protocol, scope."""
        port = self.port
        ports = port.ranges if isinstance(port, Ports) else ((port, port),)
        version, number = self.vip.version, self.protocol.number
        if isinstance(self.vip, IPv4Address | IPv6Address):
            return version, int(self.vip), self.vip.max_prefixlen, ports, number, self.scope
        address = int(self.vip.network_address)
        return version, address, self.vip.prefixlen, ports, number, self.scope

    def shared(self, other: "ServiceKey") -> "ServiceKey | None":
        """Return what both are for, so that they can't be beside each other; None if nothing.

        One port at one address stands beside a set of ports that has it: the more exact one is
        looked for first. So does a longer prefix beside a shorter one, and what is for this node
        beside what is for all.
        """
        if self.space != other.space or self.exact != other.exact:
            return None
        ports = self.ports.overlap(other.ports)
        return None if ports is None else self._replace(port=ports.plain)

    @property
    def space(self) -> tuple[Address | Prefix, Protocol, Scope]:
        """What its ports are of: in it no port may be twice."""
        return self.vip, self.protocol, self.scope


SERVER_ID = IntegerSet(0, MAX_SERVER_ID, MAX_SERVER_IDS)
"""Ids of a backend."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A host that packets of a service are sent to."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    address: Annotated[Address, UnicastAddress()]
    """Where encapsulated packets are sent to. Identifies the backend in its service."""
    weight: Annotated[int, Integer(0, MAX_WEIGHT)] = 1
    """Share of new flows, relative to the service's other backends. 0: no new flows."""
    state: Annotated[BackendState, Word(of=BackendState)] = BackendState.ACTIVE
    """active, or draining or quarantined (no new flows), or down (its flows go elsewhere too)."""
    port: Annotated[int | None, OrNone(PORT)] = None
    """Port that translated flows go to, with forwarding snat or scope node and a service of one
    port; those that there are keep theirs. None: the service's."""
    local: Annotated[bool, Flag()] = False
    """It is on this node, the host itself or a pod, whatever its addresses and routes say. false:
    they say."""
    server_id: Annotated[tuple[int, ...], SERVER_ID] = ()
    """By which connection ids name it, of a service with quic: a number, or several of them as a
    list. None: they don't."""

    def __post_init__(self) -> None:
        """Have its ids as a file's are, however they are given."""
        if self.server_id != ():
            object.__setattr__(self, "server_id", _in_order(self.server_id))

    @property
    def takes_flows(self) -> bool:
        """Whether new flows go there."""
        return self.weight > 0 and self.state is BackendState.ACTIVE


def _in_order(given: Any) -> Any:
    """Return ids in ascending order; what are none stays, for who checks it."""
    if given is None:
        return ()
    if isinstance(given, int):
        return (given,)
    try:
        return tuple(sorted(given)) if isinstance(given, list | tuple) else given
    except TypeError:
        return given


@dataclass(frozen=True, slots=True)
class Affinity:
    """New flows of a client go where those before went, all of them by the client's address."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    timeout: Annotated[int, Duration(1, MAX_AFFINITY)] = 3 * 3600
    """Seconds from the beginning of a client's last flow to when its backend is forgotten."""


@dataclass(frozen=True, slots=True)
class SourceRoute:
    """Which backends new flows of some clients go to."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    sources: Annotated[tuple[Prefix, ...], SourcePrefixes()]
    """Prefixes that the clients are in, of the VIP's family. The longest of all routes holds."""
    backends: Annotated[tuple[Address, ...], UnicastAddresses()]
    """Backends of the service, which share these flows by their weights. While none of them takes
    flows all of the service's do."""


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual address and port, and the backends that share its flows."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, Name()]
    """What people call it. Changing it does not touch a packet."""
    vip: Annotated[Address | Prefix, Vip()]
    """Address that clients connect to, or a prefix: every address of it."""
    port: Annotated[int | Ports, PortSet()]
    """Port that clients connect to; a range (8000-8999), a list of both, or any."""
    protocol: Annotated[Protocol, Word(of=Protocol)] = Protocol.TCP
    """Transport protocol. May stand behind the ports instead: 8000-8999/tcp."""
    backends: tuple[Backend, ...] = ()
    """In any order: the order has no influence. None: packets are dropped and counted."""
    forwarding: Annotated[Forwarding, Word("dsr", "l2", "snat")] = "dsr"
    """How packets reach backends. dsr: in a tunnel. l2: as they came, but for the MAC addresses;
    backends are on the same link. Both ways they answer the client directly. snat: from an address
    of the load balancer's; they answer that and need to know nothing."""
    table_size: Annotated[int, Prime(MIN_TABLE, MAX_TABLE)] = DEFAULT_TABLE
    """Slots of the Maglev table. A prime, best above 100 times the number of backends."""
    flow_table: Annotated[bool, Flag()] = True
    """Whether flows are remembered, so that they keep their backend while tables change."""
    flow_timeout: Annotated[int | None, OrNone(Duration(1, MAX_FLOW_TIMEOUT))] = None
    """UDP: a flow without packets for so many seconds has ended, and the next one begins another.
    None: 5 minutes; with forwarding snat, snat.udp_timeout. TCP connections end by themselves."""
    affinity: Affinity | None = None
    """Whether all flows of a client go to one backend, and how long that is remembered."""
    allow_from: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Prefixes that clients must be in; packets of others are dropped. None: everyone may."""
    health: Health | None = None
    """How backends are checked; those that are down get no new flows. None: they aren't."""
    scope: Annotated[Scope, Word("all", "node")] = "all"
    """Whom it is for. node: what begins on this node, at its sockets and in its pods' packets; at
    one port of one address. It stands before one for all: who comes in by a device has that."""
    hash_by: Annotated[HashBy, Word("flow", "client", "port")] = "flow"
    """What of a new flow gives it a backend. flow: addresses and ports. client: its source address
    alone; client's flows stay together while backends do, and nothing is remembered for it. port:
    its destination port alone, of a service for several: each is one backend's."""
    encap: Annotated[Encap, Word("ipip", "gre", "fou", "gue", "gue0")] = "ipip"
    """What is between the outer IP header and the packet, with forwarding dsr. ipip: nothing. gre:
    GRE. fou, gue: UDP, whose source port differs by flow; alike on the wire (GUE's variant 1).
    gue0: UDP and GUE's header of variant 0."""
    encap_port: Annotated[int | None, OrNone(PORT)] = None
    """UDP port that tunnels of fou, gue and gue0 go to. None: 6080."""
    quic: Quic | None = None
    """Whether packets go where their connection id says, by backends' server_id. None: nothing is
    read behind UDP's header."""
    route_from: tuple[SourceRoute, ...] = ()
    """Where new flows of some clients go; those of others go to all backends."""

    @property
    def key(self) -> ServiceKey:
        """What identifies the service, whatever its name."""
        return ServiceKey(self.vip, self.port, self.protocol, self.scope)

    @property
    def tunnel(self) -> Tunnel:
        """What its tunnels have between the outer IP header and the packet."""
        return Tunnel(self.encap, tunnel_port(self.encap, self.encap_port))

    @property
    def moves_flows_when_down(self) -> bool:
        """Whether flows leave a backend at once that is found down; else they stay."""
        if self.health is None or self.health.on_down is None:
            return self.protocol is Protocol.UDP
        return self.health.on_down is OnDown.MOVE

    def backend(self, address: Address | str) -> Backend:
        """Return the backend with an address.

        NotFoundError: the service doesn't have it. ConfigError: that is no address.
        """
        try:
            wanted = UnicastAddress().parse(address)
        except FieldError as error:
            raise ConfigError([Problem(str(error), "address")]) from error
        for each in self.backends:
            if each.address == wanted:
                return each
        known = ", ".join(str(each.address) for each in self.backends) or "none"
        raise NotFoundError(f"service {self.name!r} has no backend {address}; it has: {known}")
