# SPDX-License-Identifier: Apache-2.0
"""What a load balancer says of itself: plans, counters, flows, traces.

:class:`towpath.LoadBalancer` and :class:`towpath.Client` return the same ones, and as JSON they
are what the agent's API and ``-o json`` give. Plain data: importing them costs next to nothing.
"""

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
    SourceRoute,
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


@dataclass(frozen=True, slots=True)
class NextHop:
    """A host on a link that packets are sent to, and what the kernel knows of it."""

    address: Address
    device: str
    state: str
    """As ``ip neigh`` calls it, such as reachable, stale, incomplete, failed; none: no entry."""
    mac: str | None
    """Where packets go; None: it isn't resolved."""
    owner: Literal["towpath", "kernel", "other", "none"]
    """Whose entry it is: other means the user's or another program's, which is left alone."""
    held: bool
    """It is kept though its device loses its carrier."""
    age: float | None
    """Seconds since something said that it is there; None: nothing has."""
    probes: int
    """Solicitations sent since then."""
    destinations: tuple[Address, ...]
    """Which backends, and others that packets are sent to, are reached by it."""
    refused: str | None = None
    """Why the kernel doesn't take an entry for it."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """Somewhere that packets can't be sent to."""

    address: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word, such as no_route, blackhole, own_gateway, no_answer."""


@dataclass(frozen=True, slots=True)
class UnreachedBackend:
    """A backend of a service that packets don't get to."""

    service: ServiceName
    backend: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word, such as no_route, blackhole, own_gateway, no_answer."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Somewhere that packets are sent to, but perhaps by another way than is meant."""

    address: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word: two_routes."""


@dataclass(frozen=True, slots=True)
class NextHops:
    """All next hops of the datapath."""

    next_hops: tuple[NextHop, ...]
    unreached: tuple[Unreached, ...]
    managed: bool
    """The kernel keeps entries resolved by itself (5.16); otherwise it is reminded."""
    doubtful: tuple[Doubtful, ...] = ()
    """Destinations that two routes are equally good for."""


@dataclass(frozen=True, slots=True)
class Route:
    """What the datapath would do with a packet for an address."""

    destination: Address
    came_in: str
    """The device that the packet comes in on."""
    verdict: str
    """sent, handoff, or the counter of packets that are dropped."""
    why: str
    device: str | None = None
    """Where it goes out of."""
    next_hop: Address | None = None
    """The destination itself if it is on the link."""
    mac: str | None = None
    """None: not resolved."""
    source: Address | None = None
    """The address that it is sent from."""
    mtu: int | None = None
    """Of the path, in bytes."""


@dataclass(frozen=True, slots=True)
class MasqueradeRule:
    """Whose packets are masqueraded."""

    devices: tuple[str, ...]
    """By which they come in; a * at the end stands for whatever follows."""
    prefixes: tuple[Prefix, ...]
    exclude: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class MasqueradeDevice:
    """A device that masquerade's programs are on."""

    name: str
    role: Literal["pods", "out"]
    """pods: pods' packets come in by it; out: they may leave by it."""
    rules: tuple[int, ...]
    """The rules, by their number from 0, that name it."""
    direct: bool
    """Answers are put straight into the namespace of the pod."""
    ethernet: bool


@dataclass(frozen=True, slots=True)
class MasqueradeCounters:
    """Packets since the tables were made."""

    verdicts: dict[str, dict[str, int]]
    """By program (from_pod, to_pod, from_net, to_net) and verdict. Each packet that a program sees
    is counted once by it."""
    bound: int
    """Flows that have begun."""
    bytes: dict[str, int]
    """Of translated packets, by program."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Masquerade of pods."""

    rules: tuple[MasqueradeRule, ...]
    ports: str
    """That flows get, such as 61000-65535."""
    mapping: str
    through_stack: bool
    devices: tuple[MasqueradeDevice, ...]
    sources: tuple[Address, ...]
    """The node's addresses that packets may leave from."""
    ports_in_use: tuple[int, ...]
    """Of the range: by sockets of the node; no new flow gets them."""
    flows: int
    capacity: int
    """Flows that there is room for."""
    counters: MasqueradeCounters
    troubles: tuple[str, ...]
    """What isn't as it should be."""


@dataclass(frozen=True, slots=True)
class MasqueradedFlow:
    """A pod's flow, and what it was translated to."""

    protocol: str
    """tcp, udp, icmp or sctp."""
    client: Address
    client_port: int
    """Of icmp: the identifier."""
    source: Address
    """The node's address that the remote sees."""
    port: int
    """And the port."""
    remote: Address
    remote_port: int
    state: str
    """new: nothing has come back yet, or the pod has sent nothing since; established; closing."""
    idle_seconds: float
    """Since the last packet of either side."""


@dataclass(frozen=True, slots=True)
class MasqueradedFlows:
    """Some of the flows."""

    flows: tuple[MasqueradedFlow, ...]
    more: bool
    """There are more than were asked for."""


@dataclass(frozen=True, slots=True)
class CgroupProgram:
    """A program that runs at a hook of a cgroup, whoever has attached it."""

    hook: str
    """As libbpf calls it: connect4, sendmsg6, ingress, device."""
    cgroup: str
    """What it is attached to: the cgroup that was asked for, or one that it is in; empty if that
    lies above what is mounted here."""
    how: str
    """multi: others may be beside it. preorder: as well, and it runs before those of cgroups below.
    override: one that is attached below takes its place there. exclusive: no other can be below."""
    program_id: int
    name: str
    link_id: int | None
    """0: attached without a link. null: not known."""
    pins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CgroupAncestor:
    """A cgroup by its place among those that a process is in."""

    level: int
    """How far below the machine's root."""
    id: int


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """Where programs of cgroups are attached, and whether they were seen to run."""

    cgroup: str | None
    """The cgroup whose processes they are for. null: there is none."""
    id: int | None
    """Its number; 1 is the machine's root."""
    why: str
    """Why it is that one; or why there is none."""
    within: CgroupAncestor | None
    """They are attached to the machine's root, and leave alone what isn't in this one."""
    fault: bool | None
    """Whether tags of net_cls and net_prio make this kernel's sockets forget their cgroup. null:
    that can't be told."""
    proven: bool
    """Whether a process in a cgroup below was seen to have a program run for it."""
    proof: str
    """What was seen; or what is in the way, and what to do."""
    tried: str | None
    """When, ISO 8601."""
    programs: tuple[CgroupProgram, ...]
    """All that run there, hook by hook in the order of running."""


@dataclass(frozen=True, slots=True)
class SocketBackend:
    """What went to a backend from sockets."""

    address: Address
    connects: int
    """Connections of TCP, and sockets of UDP that were connected."""
    datagrams: int
    """Sent by sockets that aren't connected."""


@dataclass(frozen=True, slots=True)
class SocketService:
    """What sockets wanted of a service."""

    service: str
    verdicts: dict[str, dict[str, int]]
    """By call (connect, sendmsg) and verdict."""
    backends: tuple[SocketBackend, ...]


@dataclass(frozen=True, slots=True)
class SocketCounters:
    """Calls since the tables were made."""

    verdicts: dict[str, dict[str, int]]
    """By call (connect, sendmsg, recvmsg, getpeername) and verdict. Each call is counted once."""
    services: tuple[SocketService, ...]


@dataclass(frozen=True, slots=True)
class SocketProgram:
    """A program at a hook of the cgroup."""

    name: str
    id: int
    cgroup: str
    """That it is attached to."""
    ours: bool


@dataclass(frozen=True, slots=True)
class SocketHook:
    """A hook, and the programs that run there for processes in the cgroup."""

    name: str
    """Such as connect4."""
    attached: bool
    programs: tuple[SocketProgram, ...]
    """In the order of running."""


@dataclass(frozen=True, slots=True)
class SocketStale:
    """What became of connected sockets of UDP whose backend had gone."""

    ended: int
    failed: int
    """Could not be ended, at the last look."""
    looked: int
    """How often was looked."""


@dataclass(frozen=True, slots=True)
class SocketPackets:
    """Services in packets: for pods whose connect() never runs on this node."""

    devices: tuple[str, ...]
    """That have the programs."""
    verdicts: dict[str, dict[str, int]]
    """By program (from_pod, to_pod) and verdict. Each packet that a program sees is counted once by
    it."""
    begun: int
    """New flows."""
    bytes: dict[str, int]
    """Of translated packets, by program."""
    flows: int
    capacity: int
    """Flows that there is room for."""


@dataclass(frozen=True, slots=True)
class Socket:
    """Services at the socket."""

    cgroup: str
    """For processes in it and below; empty: there is none, and packets alone are translated."""
    refuse: str
    """What calls to a service without a backend fail with."""
    excluded: tuple[str, ...]
    """Cgroups whose processes it isn't for."""
    proven: bool
    """Whether a process in a cgroup below was seen to have a program run for it."""
    proof: str
    """What was seen; or what is in the way, and what to do."""
    hooks: tuple[SocketHook, ...]
    counters: SocketCounters
    stale: SocketStale
    troubles: tuple[str, ...]
    """What isn't as it should be."""
    packets: SocketPackets | None = None
    """None: no pods' packets are translated."""


@dataclass(frozen=True, slots=True)
class SocketFlow:
    """A socket that talks to a service."""

    protocol: str
    service: str
    """Its name, or empty: none has that address any more."""
    vip: Address
    port: int
    backend: Address
    backend_port: int
    connected: bool
    """False: it sends datagrams without having connected."""
    local: Address
    """Unspecified where the socket has none."""
    local_port: int
    cookie: int
    """The socket's number, as ``ss -e`` shows it (sk)."""
    netns: int
    """Inode of its network namespace, as ``lsns`` shows it."""


@dataclass(frozen=True, slots=True)
class PacketFlow:
    """A pod's flow to a service whose packets are translated."""

    protocol: str
    service: str
    """Its name, or empty: none has that address any more."""
    device: str
    """The pod's, on the node."""
    client: Address
    client_port: int
    vip: Address
    port: int
    backend: Address
    backend_port: int
    seen_port: int
    """The client's port as the backend sees it."""
    state: str
    """new: nothing has come back yet, or the pod has sent nothing since; established; closing."""
    idle_seconds: float
    """Since the last packet of either side."""


@dataclass(frozen=True, slots=True)
class SocketFlows:
    """Some of the sockets, and of the flows whose packets are translated."""

    flows: tuple[SocketFlow, ...]
    more: bool
    """There are more than were asked for."""
    packets: tuple[PacketFlow, ...] = ()


@dataclass(frozen=True, slots=True)
class SocketTrace:
    """Where a connect() or a datagram would go, and why."""

    verdict: str
    service: str | None = None
    backend: Address | None = None
    port: int | None = None
    by: str | None = None
    """maglev, client (affinity) or note (where the socket's datagrams went before)."""
    hash: int | None = None
    slot: int | None = None
    table_size: int | None = None
    live: str | None = None
    """What getpeername() and the connection's real end were for a process in the cgroup."""


@dataclass(frozen=True, slots=True)
class BandwidthDevice:
    """A device by which limited pods' packets leave the node."""

    name: str
    paces: bool
    """It has fq, and packets get times of departure; false: a token bucket."""
    why: str
    """Why it doesn't pace, empty: it does."""
    dropped: int
    """Packets that its fq has dropped by itself."""


@dataclass(frozen=True, slots=True)
class BandwidthAggregate:
    """A pod, or a group of pods, with one limit. Counted since the limit was made."""

    name: str
    kind: Literal["pod", "group"]
    origin: str
    """configuration; kubernetes; either, changed; set."""
    group: str | None
    devices: tuple[str, ...]
    """On the node, by which the pod is reached."""
    egress: int | None
    """Bits a second."""
    ingress: int | None
    burst: int | None
    """Bytes, None: the default."""
    packets: int | None
    """A second."""
    priority: int
    egress_bytes: int
    """On the wire: all segments with their headers. A pod's."""
    ingress_bytes: int
    verdicts: dict[str, int]
    """Packets. Each that a program sees is counted once by it; a GSO packet is one."""
    stamps_converted: int
    """Times of departure of CLOCK_TAI that were made monotonic."""
    stamps_cleared: int
    """Those of a clock that fq doesn't know."""
    backlog_ms: float
    """How long what was charged takes to leave, now."""
    delayed_ms: float
    """Of all packets together."""
    longest_ms: float
    """The longest delay that a packet was given."""
    flows: int
    """That were ahead of the present when they were last counted."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bandwidth of pods."""

    direct: bool
    """Packets go past the stack to the devices that they leave by."""
    charges: Literal["atomic", "locked"]
    stamps_kept: tuple[str, ...] | None
    """Of which packets (tcp, udp) times of departure survive the way out of a pod's namespace.

    None: that can't be tried here."""
    devices: tuple[BandwidthDevice, ...]
    aggregates: tuple[BandwidthAggregate, ...]
    room: int
    """Aggregates at most."""
    unlimited: dict[str, int]
    """Packets of no aggregate, by verdict; and their stamps."""
    troubles: tuple[str, ...]
    """What isn't as it should be."""
