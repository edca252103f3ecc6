# SPDX-License-Identifier: Apache-2.0
"""The same as :class:`towpath.Client`, for asyncio.

async with AsyncClient() as agent:
async with agent.drained("web", "192.0.2.11"):
while any(each.flows for each in await agent.backend_status("web")):
await asyncio.sleep(1)
"""

from __future__ import annotations

import asyncio
import select
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from towpath.api import calls
from towpath.api.captures import HEADER, CaptureEntry
from towpath.api.client import DEFAULT_SOCKET, TIMEOUT_SECONDS
from towpath.api.errors import refusal, unreachable
from towpath.api.wire import BROKEN, Wire
from towpath.errors import NotFoundError
from towpath.model import Backend, BackendState, Service, parse_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import Unpack

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
    from towpath.model import Address, FlowTuple
    from towpath.model.capture import Capture
    from towpath.model.fields import BackendFields, FlowFields, ServiceFields

_SUCCESS = range(200, 300)
_READ = 1 << 18

T = TypeVar("T")


class AsyncClient:
    """A connection to an agent, with the methods of :class:`towpath.Client` to be awaited.

    Several tasks of one event loop may use it: their requests take turns. An asynchronous
    context manager, which closes it.

    Args:
        socket_path: Where the agent listens (``api.socket`` of its configuration).
        timeout: Seconds that an answer may take.
    """

    def __init__(
        self, socket_path: Path | str = DEFAULT_SOCKET, *, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.socket_path = Path(socket_path)
        self._connection = _Connection(self.socket_path, timeout)
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection; the next call opens it again."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Services

    async def services(self) -> tuple[Service, ...]:
        """Every service."""
        return tuple(entry.service for entry in await self.entries())

    async def entries(self) -> tuple[ServiceEntry, ...]:
        """Every service, with its owner."""
        return await self._ask(calls.services())

    async def service(self, name: str) -> Service:
        """One service. NotFoundError: there is none of that name."""
        return (await self._ask(calls.service(name))).service

    async def add_service(self, name: str, **fields: Unpack[ServiceFields]) -> Service:
        """Add a service, or replace the one of that name, from plain values."""
        service = parse_service({"name": name, **fields})
        await self.put_service(service)
        return service

    async def put_service(self, service: Service, *, force: bool = False) -> Plan:
        """Add a service, or replace the one of that name; force: see remove_backend()."""
        return await self._ask(calls.put_service(service, force=force))

    async def remove_service(self, name: str) -> Plan:
        """Remove a service. NotFoundError: there is none of that name."""
        return await self._ask(calls.remove_service(name))

    async def apply(
        self, services: Iterable[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services, all or none; prune removes the API's others."""
        return await self._ask(calls.apply(services, prune=prune, force=force))

    async def plan(
        self, services: Iterable[Service], *, prune: bool = False, owner: str = "api"
    ) -> Plan:
        """What apply would change; for owner ``file``, what its configuration file would."""
        return await self._ask(calls.plan(services, prune=prune, owner=owner))

    # Backends

    async def backends(self, name: str) -> tuple[Backend, ...]:
        """The backends of a service."""
        return (await self.service(name)).backends

    async def set_backends(
        self,
        name: str,
        backends: Iterable[Backend | BackendFields | Address | str],
        *,
        force: bool = False,
    ) -> Plan:
        """Replace all backends of a service. Those removed leave as by remove_backend()."""
        return await self._ask(calls.set_backends(name, backends, force=force))

    async def set_backend(
        self,
        name: str,
        address: Address | str,
        weight: int | None = None,
        *,
        state: BackendState | str | None = None,
        port: int | None = None,
        server_id: int | Sequence[int] | None = None,
    ) -> Plan:
        """Add a backend, or change its weight, state, port or server_id. None: as it is."""
        return await self._ask(calls.set_backend(name, address, weight, state, port, server_id))

    async def remove_backend(
        self, name: str, address: Address | str, *, force: bool = False
    ) -> Plan:
        """Remove a backend when its flows have ended; with ``force`` at once."""
        return await self._ask(calls.remove_backend(name, address, force=force))

    async def backend_status(self, name: str) -> tuple[BackendStatus, ...]:
        """State and flows of each backend of a service, those that are terminating included."""
        return await self._ask(calls.backend_status(name))

    # What undoes itself

    @asynccontextmanager
    async def temporary(self, *services: Service) -> AsyncIterator[Plan]:
        """Services that are there in the block; afterwards all is as it was before."""
        before = {each.name: each for each in await self.services()}
        made = await self.apply(services)
        try:
            yield made
        finally:
            for service in reversed(services):
                if service.name not in before:
                    with suppress(NotFoundError):
                        await self.remove_service(service.name)
            await self.apply([before[s.name] for s in services if s.name in before])

    @asynccontextmanager
    async def drained(self, name: str, address: Address | str) -> AsyncIterator[Plan]:
        """A backend gets no new flows in the block, and its state back afterwards.

        One that is removed in the block, or given another state, stays so.
        """
        before = (await self.service(name)).backend(address).state
        try:
            yield await self.set_backend(name, address, state=BackendState.DRAINING)
        finally:
            with suppress(NotFoundError):
                now = (await self.service(name)).backend(address).state
                if now is BackendState.DRAINING:
                    await self.set_backend(name, address, state=before)

    # What is going on

    async def status(self) -> Status:
        """The agent, its file and its limits."""
        return await self._ask(calls.status())

    async def health(self) -> None:
        """Return when all is well; raise ApiError with what is wrong."""
        await self._ask(calls.health())

    async def checks(self, service: str | None = None) -> tuple[Check, ...]:
        """How every backend is that is checked, or those of one service."""
        return await self._ask(calls.checks(service))

    async def unreached(self, service: str | None = None) -> tuple[UnreachedBackend, ...]:
        """Backends that packets don't get to, and why; of all services or of one."""
        return await self._ask(calls.unreached(service))

    async def next_hops(self) -> NextHops:
        """Hosts on the links that packets are sent to, and whether they answer."""
        return await self._ask(calls.next_hops())

    async def bandwidth(self) -> Bandwidth:
        """Limits of pods, and what they have sent and received.

        ApiError: the agent's configuration has no bandwidth.
        """
        return await self._ask(calls.bandwidth())

    async def set_bandwidth(
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
        return await self._ask(calls.set_bandwidth(name, limit))

    async def delete_bandwidth(self, name: str) -> Bandwidth:
        """Take back what was set: it has what is configured, or no limit."""
        return await self._ask(calls.delete_bandwidth(name))

    async def set_bbr(self, mode: Literal["on", "off", "host"]) -> Bandwidth:
        """Have BBR in pods' namespaces ("on"), CUBIC ("off"), or what the node has ("host").

        ApiError: nobody would pace it.
        """
        return await self._ask(calls.set_bbr(mode))

    async def masquerade(self) -> Masquerade:
        """Masquerade of pods: rules, devices, addresses, and what was counted.

        ApiError: the agent's configuration has no masquerade.
        """
        return await self._ask(calls.masquerade())

    async def masqueraded_flows(
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
        return await self._ask(calls.masqueraded_flows(client, remote, protocol, port, limit))

    async def socket(self) -> Socket:
        """Services at the socket: cgroup, programs, and what was counted.

        ApiError: the agent's configuration has no socket.
        """
        return await self._ask(calls.socket())

    async def socket_flows(
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
        return await self._ask(asked)

    async def socket_trace(
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
        return await self._ask(asked)

    async def route(
        self, to: Address | str, device: str | None = None, source: Address | str | None = None
    ) -> Route:
        """What the datapath would do with a packet for an address, sent by the agent's node.

        Args:
            to: Where it is sent to.
            device: What it came in on; None: the first that is balanced on.
            source: What it is sent from; None: what the route prefers.
        """
        return await self._ask(calls.route(to, device, source))

    async def counters(self, *, per_cpu: bool = False) -> Counters:
        """Packets and bytes by verdict, service and backend; per_cpu: each CPU's verdicts."""
        return await self._ask(calls.counters(per_cpu=per_cpu))

    async def service_counters(self, name: str, *, per_cpu: bool = False) -> ServiceCounters:
        """The same of one service; per_cpu: also by CPU."""
        return await self._ask(calls.service_counters(name, per_cpu=per_cpu))

    async def flows(
        self, *, limit: int | None = None, **question: Unpack[FlowFields]
    ) -> AsyncIterator[Flow]:
        """Flows that are remembered, in no particular order: for ``async for``."""
        pages = calls.Pages(limit)
        while following := pages.next:
            start, size = following
            page = await self._ask(calls.flows(question, start=start, limit=size))
            for flow in page.flows:
                yield flow
            pages.got(page)

    async def count_flows(self, **question: Unpack[FlowFields]) -> FlowCounts:
        """How many flows are remembered, by backend."""
        return await self._ask(calls.count_flows(question))

    async def trace(self, flow: FlowTuple | str, *, device: str | None = None) -> Trace:
        """What becomes of a flow's next packet, and why. Changes nothing."""
        return await self._ask(calls.trace(flow, device))

    # Captures

    async def record(self, capture: Capture | Mapping[str, Any]) -> AsyncCaptureStream:
        """Begin a capture, on a connection of its own; what this returns is read."""
        connection = _Connection(self.socket_path, TIMEOUT_SECONDS)
        try:
            headers = await connection.begin(calls.record(capture))
        except BaseException:
            await connection.close()
            raise
        return AsyncCaptureStream(self, connection, int(headers[HEADER.lower()]))

    async def captures(self) -> tuple[CaptureEntry, ...]:
        """Captures that go on, and the last ones that have ended."""
        return await self._ask(calls.captures())

    async def capture(self, number: int) -> CaptureEntry:
        """How far a capture has come."""
        return await self._ask(calls.capture(number))

    async def stop_capture(self, number: int) -> CaptureEntry:
        """Have a capture end: whoever reads it gets the rest of the file."""
        return await self._ask(calls.stop_capture(number))

    async def accept_source(self, name: str) -> SourceStatus:
        """Have a source believed that lacks a large share of what is in force; how it is then."""
        return await self._ask(calls.accept_source(name))

    async def get(self, path: str) -> Any:
        """Return what the agent answers to GET on a path below /v1, in JSON's types.

        For capabilities that have no method here.
        """
        return await self._ask(calls.get(path))

    async def metrics(self) -> str:
        """Prometheus metrics as text."""
        return await self._ask(calls.metrics())

    async def _ask(self, call: calls.Call[T]) -> T:
        async with self._turn:
            return await self._connection.ask(call)


class AsyncCaptureStream:
    """A capture's file, as it comes: iterating gives its pieces until it ends.

    An asynchronous context manager, which ends the capture. ``number`` is the capture's.
    """

    def __init__(self, client: AsyncClient, connection: _Connection, number: int) -> None:
        self.number = number
        self._client = client
        self._connection = connection

    async def read(self) -> bytes:
        """Wait for more of the file; nothing when it has ended."""
        return await self._connection.read(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the file, piece by piece, until it ends."""
        while data := await self.read():
            yield data

    async def save(self, path: Path | str) -> int:
        """Write the file until it ends; returns its bytes."""
        size = 0
        with Path(path).open("wb") as file:  # noqa: ASYNC230 - a local file, as fast as memory
            async for data in self:
                size += file.write(data)
        return size

    async def stop(self) -> None:
        """Have it end; the rest of the file can still be read."""
        await self._client.stop_capture(self.number)

    async def close(self) -> None:
        """Leave: the capture ends if it hasn't."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Connection:
    """A unix socket, kept open between requests, and what is said over it."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._wire = Wire()

    async def ask(self, call: calls.Call[T]) -> T:
        """Send a request and read its answer."""
        await self.begin(call)
        return call.read(await self._rest())

    async def begin(self, call: calls.Call[Any]) -> dict[str, str]:
        """Send a request; return the headers of an answer that says yes."""
        async with self._errors():
            reader, writer = await self._open()
            writer.write(self._wire.send(call))
            while (head := self._wire.head()) is None:
                await self._receive(reader, self._timeout)
        status, headers = head
        if status not in _SUCCESS:
            raise refusal(status, await self._rest())
        return headers

    async def read(self, timeout: float | None) -> bytes:  # noqa: ASYNC109 - of each wait
        """Return more of the answer's body; nothing at its end. ValueError: it is closed."""
        async with self._errors():
            while (part := self._wire.part()) is None:
                if self._streams is None:
                    raise ValueError("the connection is closed")
                await self._receive(self._streams[0], timeout)
            return part

    async def close(self) -> None:
        """Close the socket; the next request opens one."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _rest(self) -> bytes:
        parts = []
        while part := await self.read(self._timeout):
            parts.append(part)
        return b"".join(parts)

    async def _receive(
        self,
        reader: asyncio.StreamReader,
        timeout: float | None,  # noqa: ASYNC109 - of each wait
    ) -> None:
        async with asyncio.timeout(timeout):
            self._wire.receive(await reader.read(_READ))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._is_over(self._streams):
            await self.close()
        if self._streams is None:
            self._wire = Wire()
            self._streams = await asyncio.open_unix_connection(self._path, limit=_READ)
        return self._streams

    def _is_over(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
        """Whether no request can follow.

        An agent that restarted, or waited long enough, has closed the connection; a task that
        was cancelled has left an answer on it.
        """
        reader, writer = streams
        inside = writer.get_extra_info("socket")
        return (
            not self._wire.idle
            or reader.at_eof()
            or writer.is_closing()
            or bool(select.select([inside], [], [], 0)[0])
        )

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (OSError, BROKEN) as error:
            await self.close()
            raise unreachable(self._path, error) from error
