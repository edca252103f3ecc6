# SPDX-License-Identifier: Apache-2.0
"""Services and backends: what is planned, how they are, what they have got."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from towpath.errors import NotFoundError
from towpath.model.kinds import Address, Ports, PortSet, Prefix, UnicastAddress, Vip, Word
from towpath.model.service import (
    BackendState,
    Protocol,
    Scope,
    Service,
    ServiceKey,
)


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A service by its name and by what it is for."""

    name: str
    vip: Annotated[Address | Prefix, Vip()]
    port: Annotated[int | Ports, PortSet()]
    protocol: Protocol
    scope: Annotated[Scope, Word("all", "node")] = "all"

    @classmethod
    def of(cls, service: Service) -> "ServiceName":
        """Return what a service is called and what it is for."""
        return cls(service.name, *service.key)

    @property
    def key(self) -> ServiceKey:
        """What the service is for, which identifies it whatever its name."""
        return ServiceKey(self.vip, self.port, self.protocol, self.scope)


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device that packets of services come in on, as it is now."""

    name: str
    """What the configuration calls it."""
    index: int | None = None
    """Its interface index; None: nothing is attached, and nothing that comes in is balanced."""
    called: str | None = None
    """The name that it has by now, where that is another one."""
    mode: str | None = None
    """native: the program runs in the driver. generic: in the kernel's stack."""
    trouble: str | None = None
    """What is wrong, such as that there is no such device; None when all is well."""
    fragments: bool | None = None
    """Whether frames may be in fragments there, as are those that are larger than a page has room
    for. In generic mode none is: the kernel makes all frames one piece. In a dispatcher none is if
    another program there takes none."""
    why_generic: str | None = None
    """What the driver said where mode auto had to settle for generic."""
    attach: str | None = None
    """link: the hook is the program's alone. dispatcher: it may be shared with others."""


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """What an apply does to one service."""

    action: Literal["add", "remove", "change"]
    service: ServiceName
    fields: tuple[str, ...] = ()
    """Fields that differ; for a service that is added or removed, none."""
    backends_added: tuple[Address, ...] = ()
    backends_removed: tuple[Address, ...] = ()
    backends_reweighted: tuple[Address, ...] = ()
    moved: float = 0.0
    """Share (0..1) of new flows that go to another backend than before: 0 for a
    service that is added, 1 for one that is removed."""
    backends_restated: tuple[Address, ...] = ()
    """Those whose state changes."""
    backends_leaving: tuple[Address, ...] = ()
    """Those of the removed that stay, draining, until their flows have ended."""
    backends_redirected: tuple[Address, ...] = ()
    """Those whose port changes."""
    backends_relocated: tuple[Address, ...] = ()
    """Those that are said to be on this node, or no longer."""
    backends_reidentified: tuple[Address, ...] = ()
    """Those whose server_id changes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would change, or has changed."""

    changes: tuple[ServiceChange, ...] = ()
    steps: int = 0
    """Steps taken in the kernel, in their order: backend before table before service."""
    moved: float = 0.0
    """Share (0..1) of the new flows of all services that move, each having as many."""

    @property
    def empty(self) -> bool:
        """Whether all is as desired."""
        return not self.changes

    def of(self, action: Literal["add", "remove", "change"]) -> tuple[ServiceChange, ...]:
        """Return the changes of one kind."""
        return tuple(change for change in self.changes if change.action == action)


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend of a service as it is, or one that was removed and is terminating."""

    address: Annotated[Address, UnicastAddress()]
    state: Annotated[BackendState, Word(of=BackendState)]
    """As it is in force: what was found counts, too. draining if it is terminating."""
    flows: int
    """That are remembered and have not been idle for long."""
    leaving: bool = False
    """It was removed, and goes when it has no flows."""
    since: str | None = None
    """When it was removed, ISO 8601."""
    until: str | None = None
    """When it goes at the latest, ISO 8601."""
    trouble: str | None = None
    """Why packets don't get to it, such as that there is no route; None when they do, or when
    nobody keeps its next hop resolved."""
    local: bool = False
    """It is on this node, which delivers its packets itself (verdict local)."""


@dataclass(frozen=True, slots=True)
class BackendCounters:
    """What was sent to a backend. Bytes are of IP packets before encapsulation."""

    address: Address
    packets: int
    bytes: int
    flows: int = 0
    """Packets that no entry of the flow table matched: new flows, mostly."""
    active: int | None = None
    """Flows that are remembered and were seen in the last five minutes. Not known of one CPU."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Packets that could not be sent on, by verdict; those that there were any of."""


@dataclass(frozen=True, slots=True)
class CpuCounters:
    """What one CPU has counted of a service."""

    cpu: int
    packets: int
    bytes: int
    flows: int
    drops: int
    dropped: dict[str, int] = field(default_factory=dict)
    backends: tuple[BackendCounters, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceCounters:
    """What came in for a service."""

    service: ServiceName
    packets: int
    bytes: int
    flows: int
    """Packets that no entry of the flow table matched: new flows, mostly."""
    drops: int
    backends: tuple[BackendCounters, ...] = ()
    active: int | None = None
    """Flows that are remembered and were seen in the last five minutes."""
    dropped: dict[str, int] = field(default_factory=dict)
    """The drops by verdict; those that there were any of."""
    cpus: tuple[CpuCounters, ...] = ()
    """The same by CPU, where that was asked for."""
    replies: int = 0
    """Packets of backends that went back to clients; with forwarding snat only."""
    reply_bytes: int = 0
    quic: dict[str, int] = field(default_factory=dict)
    """Of a service with quic: packets by what their connection ids have said: named (a backend),
    initial (nothing: the client has chosen it), unknown (nothing), down (a backend that is)."""

    def backend(self, address: Address | str) -> BackendCounters:
        """Return what was sent to one backend. NotFoundError: the service doesn't have it."""
        for each in self.backends:
            if str(each.address) == str(address):
                return each
        raise NotFoundError(f"service {self.service.name!r} has no backend {address}")
