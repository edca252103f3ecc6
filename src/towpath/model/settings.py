# SPDX-License-Identifier: Apache-2.0
"""Everything of a configuration file except the services."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from towpath.model.kinds import (
    AbsolutePath,
    Address,
    DeviceName,
    Duration,
    Flag,
    Integer,
    Integers,
    Listen,
    OrNone,
    Prefix,
    Prefixes,
    SourceAddress,
    UnicastAddress,
    UnicastAddresses,
    Word,
    split_endpoint,
)
from towpath.model.kinds.patterns import DevicePatterns
from towpath.model.service import PYDANTIC, Service
from towpath.model.snat import NO_SNAT, Snat

DERIVED = {"derived": True}
"""Metadata of a field that is no key of its own."""


@dataclass(frozen=True, slots=True)
class Device:
    """A network device that packets of services come in on."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, DeviceName()]
    """As ``ip link`` shows it."""
    mode: Annotated[Literal["auto", "native", "generic"], Word("auto", "native", "generic")] = (
        "auto"
    )
    """native: in the driver. generic: in the kernel's stack, slower. auto: native if it can."""
    attach: Annotated[Literal["link", "dispatcher"], Word("link", "dispatcher")] = "link"
    """link: the device's XDP hook is the load balancer's alone. dispatcher: it is shared with other
    programs by the protocol of libxdp, as by xdp-loader."""
    priority: Annotated[int | None, OrNone(Integer(0, (1 << 31) - 1))] = None
    """In a dispatcher: programs of lower ones see packets first. null: 50, as of any program."""


@dataclass(frozen=True, slots=True)
class Source:
    """Outer source addresses of encapsulated packets."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    ipv4: Annotated[Literal["node"] | IPv4Address | IPv4Network, SourceAddress(4)] = "node"
    """node: what the route prefers. A prefix: its host bits vary with the flow."""
    ipv6: Annotated[Literal["node"] | IPv6Address | IPv6Network, SourceAddress(6)] = "node"
    """node: what the route prefers. A prefix: its host bits vary with the flow."""


@dataclass(frozen=True, slots=True)
class Icmp:
    """What is answered by ICMP on behalf of VIPs."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    echo: Annotated[bool, Flag()] = True
    """Whether echo requests (ping) to VIPs are answered. false: they pass to the kernel."""
    fragmentation_needed: Annotated[Literal["any", "df"], Word("any", "df")] = "any"
    """Who sent an IPv4 packet that is too large for the way to its backend and is told what fits.
    any: whoever it is, though RFC 1191 and 1812 know no such answer without DF: the packet can't be
    fragmented here. df: who has set DF; packets of others are dropped without a word."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Room reserved in the kernel. Changing one needs a restart of the agent."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    services: Annotated[int, Integer(1, 1 << 20)] = 4096
    """Services at one time."""
    backends: Annotated[int, Integer(1, (1 << 20) - 1)] = 16384
    """Backends of all services together."""
    flows: Annotated[int, Integer(1024, 1 << 27)] = 524288
    """Flows remembered at one time."""
    nat_flows: Annotated[int, Integer(1024, 1 << 24)] = 262144
    """Flows of services with forwarding snat at one time, 73 bytes each."""
    fragments: Annotated[int, Integer(128, 1 << 24)] = 65536
    """Fragmented packets whose backend is known at one time, 64 bytes each."""
    clients: Annotated[int, Integer(1024, 1 << 27)] = 131072
    """Clients remembered at one time by services with affinity."""
    sources: Annotated[int, Integer(1, 1 << 24)] = 65536
    """Prefixes of allow_from of all services together, equal lists counted once."""
    port_pages: Annotated[int, Integer(1, 1 << 20)] = 1024
    """Pages of ports of services with more than one port or address, 1 KiB each: a page for each
    VIP, and one more for each 256 ports that aren't all alike."""
    server_ids: Annotated[int, Integer(1, 1 << 20)] = 16384
    """Ids that backends of services with quic have, of all together, 64 bytes each."""
    table_slots: Annotated[int, Integer(251, 1 << 28)] = 20971520
    """Maglev slots of all services together, 4 bytes each."""


DEFAULT_MARK = 0x74
"""Apart from the bits that Kubernetes' own networking uses (0x4000, 0x8000, 0xffff0f00)."""


MARK_BITS = 16
"""Of a mark of foreign checks: what is above is the same in all of them."""
MAX_FOREIGN = 4096


@dataclass(frozen=True, slots=True)
class ForeignCheck:
    """A mark by which other programs' sockets reach a backend, in the way of clients' packets."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    mark: Annotated[int, Integer(1 << MARK_BITS, (1 << 32) - 1)]
    """SO_MARK of their sockets, which are connected to a VIP."""
    backend: Annotated[Address, UnicastAddress()]
    """Where their packets go, in the way of the service that is at the VIP and port."""


@dataclass(frozen=True, slots=True)
class Checks:
    """How health checks are carried out. Changing one needs a restart of the agent."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    mark: Annotated[int, Integer(1, (1 << 32) - 1)] = DEFAULT_MARK
    """Mark (SO_MARK) of their packets on this node; no one else's may have it."""
    concurrent: Annotated[int, Integer(1, 4096)] = 128
    """Checks under way at one time; the others wait."""
    foreign: tuple[ForeignCheck, ...] = ()
    """Marks of other programs' checks, up to 4,096. All are within one range of 65,536, of which no
    one else may have any: from a multiple of that to before the next."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How next hops are kept resolved. Changing it needs a restart of the agent."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    per_second: Annotated[int, Integer(1, 10_000)] = 100
    """Requests a second at most, when entries are made and when the kernel asks again."""


DEFAULT_NEIGHBOURS = Neighbours()


@dataclass(frozen=True, slots=True)
class Local:
    """Which backends are on this node, besides its own addresses. Changing it needs a restart."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    devices: Annotated[tuple[str, ...] | None, OrNone(DevicePatterns())] = None
    """Pods' devices: what the routes lead to by one of these, and by no gateway, is on this node.
    ``veth*`` stands for all that begin so."""
    prefixes: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Addresses of which every one is on this node, whatever the routes say."""
    flows: Annotated[int, Integer(1024, 1 << 24)] = 65536
    """Flows of services with forwarding snat to backends on this node at one time, 128 bytes each.
    Room is taken when there is such a backend."""


@dataclass(frozen=True, slots=True)
class Unwrap:
    """Packets in tunnels to this node, of which what is within is balanced.

    Changing it needs a restart of the agent.
    """

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    addresses: Annotated[tuple[Address, ...], UnicastAddresses()] = ()
    """Outer destinations, of this node. None: nothing is unwrapped."""
    gre: Annotated[bool, Flag()] = False
    """Whether packets in GRE are unwrapped, too."""
    udp_ports: Annotated[tuple[int, ...], Integers(1, 65535, 4)] = ()
    """And those in UDP to these ports, of FOU and of either variant of GUE."""


NO_UNWRAP = Unwrap()


@dataclass(frozen=True, slots=True)
class Api:
    """The agent's HTTP API."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    # sun_path of struct sockaddr_un has 108 bytes, the last of them 0.
    socket: Annotated[Path, AbsolutePath(most=107)] = Path("/run/towpath/agent.sock")
    """Unix socket that it listens on."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Prometheus metrics."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    listen: Annotated[str | None, Listen()] = None
    """ADDRESS:PORT to serve them on. null: they are not served."""
    backends: Annotated[bool, Flag()] = True
    """Whether there are series of each backend. false: of services only."""

    @property
    def address(self) -> tuple[Address, int] | None:
        """``listen`` as address and port."""
        return None if self.listen is None else split_endpoint(self.listen)


@dataclass(frozen=True, slots=True)
class Drain:
    """How backends that are removed keep the flows they have."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    timeout: Annotated[int, Duration(0, 7 * 86400)] = 600
    """Whatever flows it has, a backend is gone so long after its removal. 0: at once."""
    idle: Annotated[int, Duration(1, 1800)] = 300
    """A flow of which no packet came for so long has ended."""


@dataclass(frozen=True, slots=True)
class State:
    """What outlives the agent."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    directory: Annotated[Path, AbsolutePath()] = Path("/var/lib/towpath")
    """Holds the services that were made through the API."""
    pins: Annotated[Path, AbsolutePath()] = Path("/sys/fs/bpf/towpath")
    """Directory in a bpffs that keeps maps and programs alive."""


DEFAULT_LOCAL = Local()


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration file."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    devices: tuple[Device, ...] = ()
    """What balances, if there are services. Without any, the agent does only what else is
    configured."""
    source: Source = Source()
    limits: Limits = Limits()
    checks: Checks = Checks()
    neighbours: Neighbours = DEFAULT_NEIGHBOURS
    local: Local = DEFAULT_LOCAL
    """Which backends are on this node."""
    unwrap: Unwrap = NO_UNWRAP
    """Tunnels that end here, whose packets are balanced."""
    api: Api = Api()
    icmp: Icmp = Icmp()
    metrics: Metrics = Metrics()
    state: State = State()
    snat: Snat = NO_SNAT
    """What services with forwarding snat need."""
    drain: Drain = Drain()
    services: tuple[Service, ...] = ()
    sections: Mapping[str, Any] = field(default_factory=dict, metadata=DERIVED)
    """What other capabilities and sources have here, by the name of their section."""

    def section(self, key: str) -> object:
        """Return what a key of the file has, a section included; None if it isn't there."""
        return self.sections[key] if key in self.sections else getattr(self, key, None)
