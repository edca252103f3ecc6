# SPDX-License-Identifier: Apache-2.0
"""Drives a running agent from Python, over its unix socket.

    from towpath import Client

    with Client() as agent:
        agent.add_service("web", vip="203.0.113.10", port=80, backends=["192.0.2.11"])
        with agent.drained("web", "192.0.2.11"):
            ...  # no new flows go there until the block ends

Only the standard library, h11 and the model are imported, so that scripts start fast.
"""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from towpath.api import calls
from towpath.api.captures import HEADER, CaptureEntry
from towpath.api.errors import ApiError, ClientError, UnreachableError, refusal, unreachable
from towpath.api.wire import BROKEN, Wire
from towpath.balancing import Balancing
from towpath.closeable import Closeable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any, Unpack

    from towpath.api.documents import (
        BackendStatus,
        Bandwidth,
        Check,
        Counters,
        Flow,
        FlowCounts,
        Masquerade,
        MasqueradedFlows,
        NextHops,
        Plan,
        Route,
        ServiceCounters,
        ServiceEntry,
        Socket,
        SocketFlows,
        SocketTrace,
        SourceStatus,
        Status,
        Trace,
        UnreachedBackend,
    )
    from towpath.model import Address, Backend, BackendState, FlowTuple, Service
    from towpath.model.capture import Capture
    from towpath.model.fields import BackendFields, FlowFields

__all__ = [
    "DEFAULT_SOCKET",
    "ApiError",
    "CaptureStream",
    "Client",
    "ClientError",
    "UnreachableError",
]

DEFAULT_SOCKET = Path("/run/towpath/agent.sock")

# A thousand services are applied in seconds; whoever takes longer is not there.
TIMEOUT_SECONDS = 60.0

_SUCCESS = range(200, 300)
_READ = 1 << 18

T = TypeVar("T")


class Client(Balancing):
    """A connection to an agent. A context manager, which closes it.

    Methods raise UnreachableError or ApiError, which is a NotFoundError, a ConflictError or
    a ConfigError as well where a LoadBalancer would raise that. Not for several threads at a
    time; each can have its own.

    Args:
        socket_path: Where the agent listens (``api.socket`` of its configuration).
        timeout: Seconds that an answer may take.
    """

    def __init__(
        self, socket_path: Path | str = DEFAULT_SOCKET, *, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.socket_path = Path(socket_path)
        self._connection = _Connection(self.socket_path, timeout)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        self._connection.close()

    # Services

    def services(self) -> tuple[Service, ...]:
        """Every service."""
        return tuple(entry.service for entry in self.entries())

    def entries(self) -> tuple[ServiceEntry, ...]:
        """Every service, with its owner."""
        return self._ask(calls.services())

    def service(self, name: str) -> Service:
        """One service. NotFoundError: there is none of that name."""
        return self._ask(calls.service(name)).service

    def put_service(self, service: Service, *, force: bool = False) -> Plan:
        """Add a service, or replace the one of that name; force: see remove_backend()."""
        return self._ask(calls.put_service(service, force=force))

    def remove_service(self, name: str) -> Plan:
        """Remove a service. NotFoundError: there is none of that name."""
        return self._ask(calls.remove_service(name))

    def apply(
        self, services: Iterable[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services, all or none; prune removes the API's others.

        Backends that are removed leave as by remove_backend(), with ``force`` at once.
        """
        return self._ask(calls.apply(services, prune=prune, force=force))

    def plan(self, services: Iterable[Service], *, prune: bool = False, owner: str = "api") -> Plan:
        """What apply would change; for owner ``file``, what its configuration file would."""
        return self._ask(calls.plan(services, prune=prune, owner=owner))

    # Backends

    def set_backends(
        self,
        name: str,
        backends: Iterable[Backend | BackendFields | Address | str],
        *,
        force: bool = False,
    ) -> Plan:
        """Replace all backends of a service. Those removed leave as by remove_backend()."""
        return self._ask(calls.set_backends(name, backends, force=force))

    def set_backend(
        self,
        name: str,
        address: Address | str,
        weight: int | None = None,
        *,
        state: BackendState | str | None = None,
        port: int | None = None,
        server_id: int | Sequence[int] | None = None,
    ) -> Plan:
        """Add a backend, or change its weight, state, port or server_id.

        None: as it is, or 1, active, the service's port, for which ``port`` 0 stands, and no
        server_id, for which () stands. Several of these are a list.
        """
        return self._ask(calls.set_backend(name, address, weight, state, port, server_id))

    def remove_backend(self, name: str, address: Address | str, *, force: bool = False) -> Plan:
        """Remove a backend: it gets no new flows, and goes when those that it has have ended.

        At the latest that is after ``drain.timeout`` of the agent's configuration. With
        ``force`` it goes at once, and its flows go to the others. NotFoundError: the service
        doesn't have it.
        """
        return self._ask(calls.remove_backend(name, address, force=force))

    def backend_status(self, name: str) -> tuple[BackendStatus, ...]:
        """State and flows of each backend of a service, those that are terminating included."""
        return self._ask(calls.backend_status(name))

    # What is going on

    def status(self) -> Status:
        """The agent, its file and its limits."""
        return self._ask(calls.status())

    def health(self) -> None:
        """Return when all is well; raise ApiError with what is wrong."""
        self._ask(calls.health())

    def checks(self, service: str | None = None) -> tuple[Check, ...]:
        """How every backend is that is checked, or those of one service."""
        return self._ask(calls.checks(service))

    def unreached(self, service: str | None = None) -> tuple[UnreachedBackend, ...]:
        """Backends that packets don't get to, and why; of all services or of one."""
        return self._ask(calls.unreached(service))

    def next_hops(self) -> NextHops:
        """Hosts on the links that packets are sent to, and whether they answer."""
        return self._ask(calls.next_hops())

    def bandwidth(self) -> Bandwidth:
        """Limits of pods, and what they have sent and received.

        ApiError: the agent's configuration has no bandwidth.
        """
        return self._ask(calls.bandwidth())

    def set_bandwidth(
        self,
        name: str,
        *,
        egress: int | str | None = None,
        ingress: int | str | None = None,
        burst: int | str | None = None,
        packets: int | None = None,
        priority: int | None = None,
    ) -> Bandwidth:
        """Give a pod another limit. What isn't given stays as it is.

        Args:
            name: A pod or group of the configuration, a device, or an address.
            egress: Bits a second that leave the node, as Kubernetes writes them: "50M".
            ingress: Bits a second that it receives.
            burst: Bytes at once after a pause.
            packets: Packets a second, each way that has a rate.
            priority: Of its packets (skb->priority).

        ApiError: it can't have it; nothing is changed then.
        """
        limit = {
            "egress": egress,
            "ingress": ingress,
            "burst": burst,
            "packets": packets,
            "priority": priority,
        }
        return self._ask(calls.set_bandwidth(name, limit))

    def delete_bandwidth(self, name: str) -> Bandwidth:
        """Take back what was set: it has what is configured, or no limit."""
        return self._ask(calls.delete_bandwidth(name))

    def set_bbr(self, mode: Literal["on", "off", "host"]) -> Bandwidth:
        """Have BBR in pods' namespaces ("on"), CUBIC ("off"), or what the node has ("host").

        ApiError: nobody would pace it.
        """
        return self._ask(calls.set_bbr(mode))

    def masquerade(self) -> Masquerade:
        """Masquerade of pods: rules, devices, addresses, and what was counted.

        ApiError: the agent's configuration has no masquerade.
        """
        return self._ask(calls.masquerade())

    def masqueraded_flows(
        self,
        *,
        client: Address | str | None = None,
        remote: Address | str | None = None,
        protocol: str | None = None,
        port: int | None = None,
        limit: int = 1000,
    ) -> MasqueradedFlows:
        """Flows of pods, and the address and port by which each leaves.

        Args:
            client: Only those of this pod.
            remote: Only those to this address.
            protocol: Only tcp, udp, icmp or sctp.
            port: Only those that leave from this port.
            limit: At most so many, 10,000 being the most.
        """
        return self._ask(calls.masqueraded_flows(client, remote, protocol, port, limit))

    def socket(self) -> Socket:
        """Services at the socket: cgroup, programs, and what was counted.

        ApiError: the agent's configuration has no socket.
        """
        return self._ask(calls.socket())

    def socket_flows(
        self,
        *,
        service: str | None = None,
        backend: Address | str | None = None,
        protocol: str | None = None,
        connected: bool | None = None,
        netns: int | None = None,
        limit: int = 1000,
    ) -> SocketFlows:
        """Sockets that talk to services, of all network namespaces.

        Args:
            service: Only those that talk to this service.
            backend: Only those that talk to this backend.
            protocol: Only tcp or udp.
            connected: Only those that have connected, or only those that haven't.
            netns: Only those of the network namespace with this inode.
            limit: At most so many, 10,000 being the most.
        """
        asked = calls.socket_flows(
            service=service,
            backend=backend,
            protocol=protocol,
            connected=connected,
            netns=netns,
            limit=limit,
        )
        return self._ask(asked)

    def socket_trace(
        self,
        address: Address | str,
        port: int,
        protocol: str = "tcp",
        *,
        cgroup: str | None = None,
        netns: str | None = None,
        client: int | None = None,
        socket: int = 0,
        live: bool = False,
    ) -> SocketTrace:
        """Where a connect() or a datagram would go, and why. Changes nothing.

        Args:
            address: What it is for.
            port: The same.
            protocol: tcp or udp.
            cgroup: That the process is in; None: none that matters.
            netns: Its network namespace, by name or path; None: the agent's.
            client: That namespace's cookie, if it is known.
            socket: The socket's cookie, from which the backend follows.
            live: Also have a process there connect, and say what it finds. Of TCP a connection is
                begun and reset.
        """
        who = {"cgroup": cgroup, "netns": netns, "client": client, "socket": socket, "live": live}
        asked = calls.socket_trace(address, port, protocol, **who)
        return self._ask(asked)

    def route(
        self, to: Address | str, device: str | None = None, source: Address | str | None = None
    ) -> Route:
        """What the datapath would do with a packet for an address, sent by the agent's node.

        Args:
            to: Where it is sent to.
            device: What it came in on; None: the first that is balanced on.
            source: What it is sent from; None: what the route prefers.
        """
        return self._ask(calls.route(to, device, source))

    def counters(self, *, per_cpu: bool = False) -> Counters:
        """Packets and bytes by verdict, service and backend, read from the kernel now.

        per_cpu: also each CPU's verdicts.
        """
        return self._ask(calls.counters(per_cpu=per_cpu))

    def service_counters(self, name: str, *, per_cpu: bool = False) -> ServiceCounters:
        """The same of one service; per_cpu: also by CPU."""
        return self._ask(calls.service_counters(name, per_cpu=per_cpu))

    def flows(self, *, limit: int | None = None, **question: Unpack[FlowFields]) -> Iterator[Flow]:
        """Flows that are remembered, in no particular order.

        Args:
            limit: At most so many; None: as many as there are.
            question: Which, as :class:`towpath.model.fields.FlowFields` has them: ``service``,
                ``vip``, ``backend``, ``client``, ``max_idle``, ``translated``, ``expired``.
        """
        pages = calls.Pages(limit)
        while following := pages.next:
            start, size = following
            page = self._ask(calls.flows(question, start=start, limit=size))
            yield from page.flows
            pages.got(page)

    def count_flows(self, **question: Unpack[FlowFields]) -> FlowCounts:
        """How many flows are remembered, by backend; ``question`` as for `flows`."""
        return self._ask(calls.count_flows(question))

    def trace(self, flow: FlowTuple | str, *, device: str | None = None) -> Trace:
        """What becomes of a flow's next packet, and why. Changes nothing.

        ``flow``: such as "198.51.100.7:40000 -> 203.0.113.10:80 tcp", behind which may
        stand "size 1500", "syn", "rst", "error" (ICMP about the flow) or "fragment".
        """
        return self._ask(calls.trace(flow, device))

    # Captures

    def record(self, capture: Capture | Mapping[str, Any]) -> CaptureStream:
        """Begin a capture; what this returns is read until it ends.

        It has a connection of its own, so that this client can go on asking.
        """
        return CaptureStream(self.socket_path, calls.record(capture))

    def captures(self) -> tuple[CaptureEntry, ...]:
        """Captures that go on, and the last ones that have ended."""
        return self._ask(calls.captures())

    def capture(self, number: int) -> CaptureEntry:
        """How far a capture has come."""
        return self._ask(calls.capture(number))

    def stop_capture(self, number: int) -> CaptureEntry:
        """Have a capture end: whoever reads it gets the rest of the file."""
        return self._ask(calls.stop_capture(number))

    def accept_source(self, name: str) -> SourceStatus:
        """Have a source believed that lacks a large share of what is in force; how it is then."""
        return self._ask(calls.accept_source(name))

    def get(self, path: str) -> Any:
        """Return what the agent answers to GET on a path below /v1, in JSON's types.

        For capabilities that have no method here.
        """
        return self._ask(calls.get(path))

    def metrics(self) -> str:
        """Prometheus metrics as text."""
        return self._ask(calls.metrics())

    def _ask(self, call: calls.Call[T]) -> T:
        """Send a request; return what an answer that says yes says."""
        return self._connection.ask(call)


class CaptureStream(Closeable):
    """A capture's file, as it comes: iterating gives its pieces until it ends.

    A context manager, which ends the capture. ``number`` is the capture's, by which others
    stop it. Raises UnreachableError or ApiError.
    """

    def __init__(self, socket_path: Path, call: calls.Call[bytes]) -> None:
        self.socket_path = socket_path
        self._connection = _Connection(socket_path, TIMEOUT_SECONDS)
        try:
            headers = self._connection.begin(call)
        except ClientError:
            self.close()
            raise
        self.number = int(headers[HEADER.lower()])
        # From now on there may be nothing to say for as long as there is no packet.
        self._connection.wait_for_ever()

    def read(self) -> bytes:
        """Wait for more of the file; nothing when it has ended. ValueError: it is closed."""
        return self._connection.read()

    def __iter__(self) -> Iterator[bytes]:
        """Give the file, piece by piece, until it ends."""
        while data := self.read():
            yield data

    def save(self, path: Path | str) -> int:
        """Write the file until it ends; returns its bytes."""
        with Path(path).open("wb") as file:
            return sum(map(file.write, self))

    def stop(self) -> None:
        """Have it end; the rest of the file can still be read. For any thread."""
        with Client(self.socket_path) as client:
            client.stop_capture(self.number)

    def close(self) -> None:
        """Leave: the capture ends if it hasn't."""
        self._connection.close()


class _Connection:
    """A unix socket, kept open between requests, and what is said over it."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._wire = Wire()

    def ask(self, call: calls.Call[T]) -> T:
        """Send a request and read its answer."""
        self.begin(call)
        return call.read(self._rest())

    def begin(self, call: calls.Call[Any]) -> dict[str, str]:
        """Send a request; return the headers of an answer that says yes."""
        with self._errors():
            connection = self._open()
            # An agent that doesn't want to have all of it says why before it closes.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(self._wire.send(call))
            while (head := self._wire.head()) is None:
                self._receive()
        status, headers = head
        if status not in _SUCCESS:
            raise refusal(status, self._rest())
        return headers

    def read(self) -> bytes:
        """Return more of the answer's body; nothing at its end. ValueError: it is closed."""
        with self._errors():
            while (part := self._wire.part()) is None:
                self._receive()
            return part

    def wait_for_ever(self) -> None:
        """Let the rest of the answer take any time."""
        if self._socket is not None:
            self._socket.settimeout(None)

    def close(self) -> None:
        """Close the socket; the next request opens one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _rest(self) -> bytes:
        parts = []
        while part := self.read():
            parts.append(part)
        return b"".join(parts)

    def _receive(self) -> None:
        if self._socket is None:
            raise ValueError("the connection is closed")
        self._wire.receive(self._socket.recv(_READ))

    def _open(self) -> socket.socket:
        # Nothing is owed to us: what can be read now is the end of the connection,
        # which an agent that restarted, or waited long enough, has closed.
        if self._socket is not None and (
            not self._wire.idle or select.select([self._socket], [], [], 0)[0]
        ):
            self.close()
        if self._socket is None:
            self._wire = Wire()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout)
            self._socket.connect(str(self._path))
        return self._socket

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BROKEN) as error:
            self.close()
            raise unreachable(self._path, error) from error
