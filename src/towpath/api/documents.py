# SPDX-License-Identifier: Apache-2.0
"""What the API answers with, as dataclasses.

The agent makes them, :class:`towpath.Client` returns them. What any load balancer says of itself
comes from :mod:`towpath.documents`; what only an agent has to say is made here.
"""

from dataclasses import dataclass, field
from pathlib import Path

from towpath.core.health import State as CheckState
from towpath.documents import (
    BackendCounters,
    BackendStatus,
    Bandwidth,
    BandwidthAggregate,
    BandwidthDevice,
    CgroupAncestor,
    CgroupProgram,
    CgroupRoot,
    Counters,
    CpuCounters,
    CpuVerdicts,
    DeviceStatus,
    Doubtful,
    Flow,
    FlowCount,
    FlowCounts,
    Flows,
    Masquerade,
    MasqueradeCounters,
    MasqueradeDevice,
    MasqueradedFlow,
    MasqueradedFlows,
    MasqueradeRule,
    NextHop,
    NextHops,
    PacketFlow,
    Plan,
    Refused,
    Route,
    ServiceChange,
    ServiceCounters,
    ServiceName,
    Socket,
    SocketBackend,
    SocketCounters,
    SocketFlow,
    SocketFlows,
    SocketHook,
    SocketPackets,
    SocketProgram,
    SocketService,
    SocketStale,
    SocketTrace,
    Trace,
    Translation,
    Unreached,
    UnreachedBackend,
    UnwrappedCounters,
)
from towpath.model import Address, CheckType, Device, Problem, Service

__all__ = [
    "BackendCounters",
    "BackendStatus",
    "Bandwidth",
    "BandwidthAggregate",
    "BandwidthDevice",
    "CgroupAncestor",
    "CgroupProgram",
    "CgroupRoot",
    "Check",
    "Counters",
    "CpuCounters",
    "CpuVerdicts",
    "DeviceStatus",
    "Doubtful",
    "FileStatus",
    "Flow",
    "FlowCount",
    "FlowCounts",
    "Flows",
    "KindStatus",
    "Masquerade",
    "MasqueradeCounters",
    "MasqueradeDevice",
    "MasqueradeRule",
    "MasqueradedFlow",
    "MasqueradedFlows",
    "NextHop",
    "NextHops",
    "PacketFlow",
    "Plan",
    "Refused",
    "Route",
    "ServiceChange",
    "ServiceCounters",
    "ServiceEntry",
    "ServiceName",
    "Socket",
    "SocketBackend",
    "SocketCounters",
    "SocketFlow",
    "SocketFlows",
    "SocketHook",
    "SocketPackets",
    "SocketProgram",
    "SocketService",
    "SocketStale",
    "SocketTrace",
    "SourceStatus",
    "Status",
    "Trace",
    "Translation",
    "Unreached",
    "UnreachedBackend",
    "UnwrappedCounters",
    "Use",
]


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service and where it comes from."""

    owner: str
    """Its source, the only place to change it. file: the configuration file. api: anyone may
    change it. An agent may have others."""
    service: Service


@dataclass(frozen=True, slots=True)
class Check:
    """How a backend of a service is, by its health check. Times are ISO 8601."""

    service: ServiceName
    backend: Address
    type: CheckType
    state: CheckState
    """unknown, up and failing get new flows; held, down and rising don't."""
    since: str
    error: str | None = None
    """Why the last check did not pass, or could not be made; None if it passed."""
    checked: str | None = None
    """When the last check ended; None: there was none."""
    passed: int = 0
    failed: int = 0
    unmade: int = 0
    """Checks that this node could not make, which change nothing."""
    certificate_expires: str | None = None
    """When the certificate that was shown last is no longer valid; None: none was shown."""

    @property
    def serves(self) -> bool:
        """Whether the backend gets new flows, unless none of its service is up."""
        return self.state.serves


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The configuration file, and what became of its last change."""

    path: Path
    accepted: str
    """When the content that is in force was read, ISO 8601."""
    refused: str | None = None
    """When a later content was refused; None when there is none."""
    problems: tuple[Problem, ...] = ()
    """Why it was refused."""


@dataclass(frozen=True, slots=True)
class KindStatus:
    """What a source knows of one kind of objects."""

    name: str
    """Such as endpointslices."""
    synced: bool
    """Whether all were known once: before that nothing of the source is changed."""
    objects: int
    version: str = ""
    """Up to which all is known, as the source counts."""
    age: float | None = None
    """Seconds since anything was told of them; None: nothing was yet."""
    error: str | None = None
    """Why nothing is told just now."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Addresses that a source gives to services."""

    name: str
    addresses: int
    """How many it has, of both families."""
    used: int
    """How many of them nobody else can be given."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source of services, and what became of what it has."""

    accepted: str | None = None
    """When the services that are in force were taken over, ISO 8601; None: before the agent
    started."""
    refused: str | None = None
    """When later ones were refused; None when there are none."""
    problems: tuple[Problem, ...] = ()
    """Why they were refused."""
    trouble: str | None = None
    """Why the source can't be read just now; None when all is well."""
    kinds: tuple[KindStatus, ...] = ()
    """What it follows, where that is more than one thing."""
    withheld: int = 0
    """Services that a list lacks which isn't believed."""
    held: int = 0
    """Endpoints that are in no list while these are written anew, and stay."""
    unserved: tuple[Problem, ...] = ()
    """What of its objects can't be served as they are."""
    pools: tuple[PoolStatus, ...] = ()
    """Addresses that it gives to services."""
    leader: str | None = None
    """Whose agent gives them, as far as is known."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a limit is taken."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Status:
    """The agent as a whole."""

    version: str
    pid: int
    started: str
    devices: tuple[Device, ...]
    file: FileStatus
    services: dict[str, int]
    """How many by owner."""
    limits: dict[str, Use]
    state: Path
    pins: Path
    metrics: str | None
    resident_bytes: int
    trouble: str | None = None
    """What is wrong with the agent itself; None when all is well."""
    checks: dict[str, int] = field(default_factory=dict)
    """Backends that are checked, by their state."""
    unreached: dict[str, int] = field(default_factory=dict)
    """Backends that packets don't get to, by the reason, such as no_route or no_answer."""
    capabilities: dict[str, str] = field(default_factory=dict)
    """What the agent does: each capability that is configured, in a few words."""
    sources: dict[str, SourceStatus] = field(default_factory=dict)
    """Where services come from, besides the file."""
    device_status: tuple[DeviceStatus, ...] = ()
    """How the devices are: what is attached where, and which are missing."""
