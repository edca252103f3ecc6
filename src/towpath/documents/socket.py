# SPDX-License-Identifier: Apache-2.0
"""Services at the sockets of this node."""

from dataclasses import dataclass

from towpath.model.kinds import Address


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
