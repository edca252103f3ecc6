# SPDX-License-Identifier: Apache-2.0
"""What has become of packets: verdicts, flows, traces."""

from dataclasses import dataclass, field

from towpath.documents.services import ServiceCounters, ServiceName
from towpath.errors import NotFoundError
from towpath.model.kinds import Address
from towpath.model.service import (
    ServiceKey,
    SourceRoute,
)


@dataclass(frozen=True, slots=True)
class CpuVerdicts:
    """Every packet that one CPU has seen."""

    cpu: int
    verdicts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Refused:
    """Frames that were sent, and counted so, and that the kernel or a driver then refused."""

    device: str
    """That they were to leave by; #INDEX if it is gone."""
    error: str
    """Such as EOPNOTSUPP: its driver takes no frames from XDP; or queue full."""
    packets: int


@dataclass(frozen=True, slots=True)
class UnwrappedCounters:
    """Packets for services that were taken out of tunnels to one address."""

    address: Address
    """The tunnels' destination."""
    packets: int
    bytes: int
    """Of the packets within, as their headers say."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Every packet that the datapath has seen."""

    verdicts: dict[str, int]
    """Packets by verdict, such as tx or drop_no_backend."""
    services: tuple[ServiceCounters, ...] = ()
    cpus: tuple[CpuVerdicts, ...] = ()
    """The verdicts by CPU, where that was asked for."""
    refused: tuple[Refused, ...] | None = None
    """Of the packets that were sent, those that did not leave. None: this kernel doesn't tell."""
    local: dict[str, dict[str, int]] = field(default_factory=dict)
    """Translated packets of backends on this node, by program (in, out) and what
    became of them; and bytes and new flows (begun). Empty where there is no such backend."""
    unwrapped: tuple[UnwrappedCounters, ...] = ()
    """What was taken out of tunnels, by each address of ``unwrap``."""

    def service(self, which: str | ServiceKey) -> ServiceCounters:
        """Return what came in for one service, by its name or by what it is for.

        NotFoundError: nothing is counted of such a service.
        """
        for each in self.services:
            if which in (each.service.name, each.service.key):
                return each
        known = ", ".join(each.service.name for each in self.services) or "none"
        raise NotFoundError(f"there is no service {str(which)!r}; there are: {known}")


@dataclass(frozen=True, slots=True)
class Translation:
    """What a flow of a service with forwarding snat is translated to."""

    address: Address
    """Ours, which the backend sees as its client's."""
    port: int
    """The source port there."""
    vip: Address
    """What the client has sent to."""
    vip_port: int
    backend_port: int
    """Where it goes at the backend."""
    state: str
    """new: not yet confirmed by both sides. established. closing: reset, or ended by both sides.
    expired: its time is over, and no other flow has taken its port yet."""
    remaining_seconds: float
    """Until it has expired if no packet comes, 0 if it has; to a step of 256 jiffies (0.26 to
    2.6 s)."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that is remembered."""

    service: str
    """Its name."""
    client: Address
    client_port: int
    backend: Address
    idle_seconds: float
    """Since its last packet, to a step of 64 jiffies (64 to 640 ms). If it is translated, since the
    last of either side, to a step of 256."""
    translation: Translation | None = None
    """None: it isn't translated, but goes in a tunnel or a new frame, or to a backend on this node
    with its client's address."""


@dataclass(frozen=True, slots=True)
class Flows:
    """Some of the flows that are remembered."""

    flows: tuple[Flow, ...] = ()
    following: int | None = None
    """What to ask for as ``start`` to get those after these; None: there are none."""


@dataclass(frozen=True, slots=True)
class FlowCount:
    """How many flows of a service a backend has."""

    service: str
    backend: Address
    flows: int


@dataclass(frozen=True, slots=True)
class FlowCounts:
    """How many flows are remembered."""

    total: int
    limit: int
    """Room for those that aren't translated, of all services."""
    backends: tuple[FlowCount, ...] = ()
    """Those that have any."""
    translated: int = 0
    """Of the total, those that are translated."""
    nat_limit: int = 0
    """Room for those; 0 where there is no address to translate to."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Every decision about a flow's next packet. What wasn't reached is None."""

    flow: str
    """SRC:PORT -> DST:PORT PROTO."""
    device: str
    """It came in here."""
    verdict: str
    """Where the packet goes, such as tx, or why it goes nowhere."""
    service: ServiceName | None = None
    """None: the destination is no VIP of ours."""
    hash: int | None = None
    """32 bits, the same on every node."""
    flow_hit: bool | None = None
    """Whether the flow table had the flow; if not, its client decides or Maglev."""
    client_hit: bool | None = None
    """Of a new flow to a service with affinity: whether its client was known."""
    quic: str | None = None
    """Of a service with quic, what the connection id says: named, initial, unknown or down."""
    route: SourceRoute | None = None
    """By which of the service's routes a new flow goes; None: by none."""
    slot: int | None = None
    table_size: int | None = None
    backend: Address | None = None
    forwarding: str | None = None
    """dsr: in a tunnel. l2: as it came, to the backend's MAC address."""
    encapsulation: str | None = None
    """ipip, ip6ip6 or 4in6; gre; fou, gue or gue0 and a port, such as gue:6080. None: it has none,
    such as what is translated, or stays here."""
    outer_source: Address | None = None
    source_port: int | None = None
    """What its source port becomes, for a flow that is translated already."""
    destination_port: int | None = None
    """What its destination port becomes, for a packet that is translated."""
    fib_result: str | None = None
    """What the kernel's routing said."""
    egress: str | None = None
    """It leaves from here."""
    handoff: str | None = None
    """Of a packet that is handed to the kernel: why XDP can't send it."""
    vlan: int | None = None
    source_mac: str | None = None
    next_hop_mac: str | None = None
    mtu: int | None = None
