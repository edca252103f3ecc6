# SPDX-License-Identifier: Apache-2.0
"""Every request that the API takes, as a value: what to send, and what the answer is read as.

Nothing here sends anything: :class:`towpath.Client` and :class:`towpath.AsyncClient` do, each in
its own way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from towpath.api.captures import CaptureEntry
from towpath.api.codec import build, plain
from towpath.api.documents import (
    BackendStatus,
    Bandwidth,
    Check,
    Counters,
    FlowCounts,
    Flows,
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
from towpath.model.capture import parse_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from towpath.model import Address, Backend, BackendState, FlowTuple, Service
    from towpath.model.capture import Capture
    from towpath.model.fields import BackendFields, FlowFields

T = TypeVar("T")

# Flows asked for at a time: the most that the agent gives.
PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request."""

    method: str
    target: str
    read: Callable[[bytes], T]
    """What the body of an answer means."""
    body: bytes | None = None
    """JSON."""


def _call(hint: type[T], method: str, path: str, body: object = None, **query: object) -> Call[T]:
    """Return a call whose answer is a document of type ``hint``."""
    given = {name: str(value) for name, value in query.items() if value is not None}
    target = f"{path}?{urlencode(given)}" if given else path

    def read(content: bytes) -> T:
        found: T = build(hint, json.loads(content))
        return found

    return Call(method, target, read, None if body is None else json.dumps(body).encode())


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _forced(force: bool) -> str | None:  # noqa: FBT001 - a query
    return "true" if force else None


# Services


def services() -> Call[tuple[ServiceEntry, ...]]:
    """Every service, with its owner."""
    return _call(tuple[ServiceEntry, ...], "GET", "/v1/services")


def service(name: str) -> Call[ServiceEntry]:
    """One service, with its owner."""
    return _call(ServiceEntry, "GET", _path("services", name))


def put_service(made: Service, *, force: bool) -> Call[Plan]:
    """Add or replace one."""
    path = _path("services", made.name)
    return _call(Plan, "PUT", path, plain(made, defaults=False), force=_forced(force))


def remove_service(name: str) -> Call[Plan]:
    """Remove one."""
    return _call(Plan, "DELETE", _path("services", name))


def apply(made: Iterable[Service], *, prune: bool, force: bool) -> Call[Plan]:
    """Add or replace several, all or none."""
    body = {"services": plain(list(made), defaults=False), "prune": prune, "force": force}
    return _call(Plan, "POST", "/v1/apply", body)


def plan(made: Iterable[Service], *, prune: bool, owner: str) -> Call[Plan]:
    """What that would change."""
    body = {"services": plain(list(made), defaults=False), "prune": prune, "owner": str(owner)}
    return _call(Plan, "POST", "/v1/plan", body)


# Backends


def set_backends(
    name: str, backends: Iterable[Backend | BackendFields | Address | str], *, force: bool
) -> Call[Plan]:
    """Replace all backends of a service."""
    path = _path("services", name, "backends")
    return _call(Plan, "PUT", path, plain(list(backends), defaults=False), force=_forced(force))


def set_backend(
    name: str,
    address: Address | str,
    weight: int | None,
    state: BackendState | str | None,
    port: int | None,
    server_id: int | Sequence[int] | None,
) -> Call[Plan]:
    """Add a backend, or change it."""
    given = {
        "weight": weight,
        "state": None if state is None else str(state),
        "port": port,
        "server_id": plain(server_id),
    }
    body = {key: value for key, value in given.items() if value is not None}
    return _call(Plan, "PUT", _path("services", name, "backends", str(address)), body)


def remove_backend(name: str, address: Address | str, *, force: bool) -> Call[Plan]:
    """Remove a backend."""
    path = _path("services", name, "backends", str(address))
    return _call(Plan, "DELETE", path, force=_forced(force))


def backend_status(name: str) -> Call[tuple[BackendStatus, ...]]:
    """State and flows of each backend of a service."""
    path = _path("services", name, "backends", "status")
    return _call(tuple[BackendStatus, ...], "GET", path)


# What is going on


def status() -> Call[Status]:
    """The agent, its file and its limits."""
    return _call(Status, "GET", "/v1/status")


def health() -> Call[dict[str, str]]:
    """Whether all is well."""
    return _call(dict[str, str], "GET", "/v1/health")


def checks(name: str | None) -> Call[tuple[Check, ...]]:
    """How every backend is that is checked, or those of one service."""
    return _call(tuple[Check, ...], "GET", "/v1/checks", service=name)


def unreached(name: str | None) -> Call[tuple[UnreachedBackend, ...]]:
    """Backends that packets don't get to, of all services or of one."""
    return _call(tuple[UnreachedBackend, ...], "GET", "/v1/unreached", service=name)


def next_hops() -> Call[NextHops]:
    """Hosts on the links that packets are sent to."""
    return _call(NextHops, "GET", "/v1/next-hops")


def route(to: Address | str, device: str | None, source: Address | str | None) -> Call[Route]:
    """What the datapath would do with a packet for an address."""
    return _call(Route, "GET", "/v1/route", to=to, device=device, source=source)


def bandwidth() -> Call[Bandwidth]:
    """Limits of pods."""
    return _call(Bandwidth, "GET", "/v1/bandwidth")


def set_bandwidth(name: str, limit: Mapping[str, int | str | None]) -> Call[Bandwidth]:
    """Another limit."""
    given = {field: value for field, value in limit.items() if value is not None}
    return _call(Bandwidth, "PUT", _path("bandwidth", "limits", name), given)


def delete_bandwidth(name: str) -> Call[Bandwidth]:
    """What is configured."""
    return _call(Bandwidth, "DELETE", _path("bandwidth", "limits", name))


def set_bbr(mode: str) -> Call[Bandwidth]:
    """BBR in pods."""
    return _call(Bandwidth, "PUT", "/v1/bandwidth/bbr", {"mode": mode})


def masquerade() -> Call[Masquerade]:
    """Masquerade of pods."""
    return _call(Masquerade, "GET", "/v1/masquerade")


def masqueraded_flows(
    client: Address | str | None,
    remote: Address | str | None,
    protocol: str | None,
    port: int | None,
    limit: int,
) -> Call[MasqueradedFlows]:
    """Flows of pods."""
    asked = {"client": client, "remote": remote, "protocol": protocol, "port": port}
    return _call(MasqueradedFlows, "GET", "/v1/masquerade/flows", **asked, limit=limit)


def socket() -> Call[Socket]:
    """Services at the socket."""
    return _call(Socket, "GET", "/v1/socket")


def socket_flows(**question: object) -> Call[SocketFlows]:
    """Sockets that talk to services."""
    return _call(SocketFlows, "GET", "/v1/socket/flows", **question)


def socket_trace(
    address: Address | str, port: int, protocol: str, **who: object
) -> Call[SocketTrace]:
    """Where a call would go; ``who``: cgroup, netns, client, socket, live."""
    asked = {"address": address, "port": port, "protocol": protocol} | who
    return _call(SocketTrace, "GET", "/v1/socket/trace", **asked)


def counters(*, per_cpu: bool) -> Call[Counters]:
    """Packets and bytes by verdict, service and backend."""
    return _call(Counters, "GET", "/v1/counters", per_cpu=per_cpu or None)


def service_counters(name: str, *, per_cpu: bool) -> Call[ServiceCounters]:
    """The same of one service."""
    path = _path("services", name, "counters")
    return _call(ServiceCounters, "GET", path, per_cpu=per_cpu or None)


def flows(question: FlowFields, *, start: int, limit: int) -> Call[Flows]:
    """A page of the flows that are remembered."""
    return _call(Flows, "GET", "/v1/flows", **question, start=start, limit=limit)


def count_flows(question: FlowFields) -> Call[FlowCounts]:
    """How many there are, by backend."""
    return _call(FlowCounts, "GET", "/v1/flows/count", **question)


def trace(flow: FlowTuple | str, device: str | None) -> Call[Trace]:
    """What the loaded program decides for a flow."""
    return _call(Trace, "GET", "/v1/trace", flow=flow, device=device)


def get(path: str) -> Call[Any]:
    """Whatever is at a path below /v1, in JSON's types."""
    return Call("GET", f"/v1/{path}", json.loads)


def metrics() -> Call[str]:
    """Prometheus metrics as text."""
    return Call("GET", "/metrics", bytes.decode)


# Captures


def record(capture: Capture | Mapping[str, Any]) -> Call[bytes]:
    """Begin a capture; its answer goes on until it ends. ConfigError: something is wrong."""
    body = json.dumps(plain(parse_capture(capture), defaults=False)).encode()
    return Call("POST", "/v1/captures", bytes, body)


def captures() -> Call[tuple[CaptureEntry, ...]]:
    """Captures that go on, and the last ones that have ended."""
    return _call(tuple[CaptureEntry, ...], "GET", "/v1/captures")


def capture(number: int) -> Call[CaptureEntry]:
    """How far one has come."""
    return _call(CaptureEntry, "GET", _path("captures", str(number)))


def accept_source(name: str) -> Call[SourceStatus]:
    """Believe what a source has, whatever it lacks."""
    return _call(SourceStatus, "POST", _path("sources", name, "accept"))


def stop_capture(number: int) -> Call[CaptureEntry]:
    """Have one end."""
    return _call(CaptureEntry, "DELETE", _path("captures", str(number)))


class Pages:
    """Which pages of flows to ask for, to have at most ``limit`` of them."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._start: int | None = 0

    @property
    def next(self) -> tuple[int, int] | None:
        """Where the next page begins and how long it is to be; None: that's all."""
        if self._start is None or self._left == 0:
            return None
        return self._start, PAGE if self._left is None else min(self._left, PAGE)

    def got(self, page: Flows) -> None:
        """Note what came."""
        if self._left is not None:
            self._left -= len(page.flows)
        self._start = page.following
