# SPDX-License-Identifier: Apache-2.0
"""Drives a running agent from Python, over its unix socket.

    from towpath import Client

    with Client() as agent:
        agent.add_service("web", vip="203.0.113.10", port=80, backends=["192.0.2.11"])
        with agent.drained("web", "192.0.2.11"):
            ...  # no new flows go there until the block ends

Only the standard library and the model are imported, so that scripts start fast.
"""

from __future__ import annotations

import json
import select
import socket
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from towpath.api.captures import HEADER, CaptureEntry
from towpath.api.codec import build, plain
from towpath.api.documents import (
    BackendStatus,
    Check,
    Counters,
    Flow,
    FlowCounts,
    Flows,
    Plan,
    ServiceCounters,
    ServiceEntry,
    Status,
    Trace,
)
from towpath.closing import Closing
from towpath.model import Backend, BackendState, Problem, Service, parse_service
from towpath.model.capture import parse_capture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.model import Address, FlowTuple
    from towpath.model.capture import Capture

DEFAULT_SOCKET = Path("/run/towpath/agent.sock")

# A thousand services are applied in seconds; whoever takes longer is not there.
TIMEOUT_SECONDS = 60.0

NOT_FOUND = 404

# Flows asked for at a time: the most that the agent gives.
PAGE = 10_000


class ClientError(Exception):
    """The agent could not be asked, or refused."""


class UnreachableError(ClientError):
    """Nobody answers at the socket, or not in a way that can be understood."""


class RefusedError(ClientError):
    """The agent refused; nothing was changed.

    Attributes:
        status: HTTP status: 404 not there, 409 contradicts what is there or does
            not fit, 422 a value that is not allowed, 500 the kernel or the disk.
        problems: Everything that is wrong, with its field.
    """

    def __init__(self, status: int, problems: tuple[Problem, ...]) -> None:
        self.status = status
        self.problems = problems
        super().__init__("\n".join(map(str, problems)) or f"the agent answered {status}")


class Client(Closing):
    """A connection to an agent. A context manager, which closes it.

    Methods raise UnreachableError or RefusedError. Not for several threads at a
    time; each can have its own.

    Args:
        socket_path: Where the agent listens (``api.socket`` of its configuration).
        timeout: Seconds that an answer may take.
    """

    def __init__(
        self, socket_path: Path | str = DEFAULT_SOCKET, *, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.socket_path = Path(socket_path)
        self._connection = _UnixConnection(self.socket_path, timeout)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        self._connection.close()

    # Services

    def services(self) -> tuple[ServiceEntry, ...]:
        """Every service, with its owner."""
        found: tuple[ServiceEntry, ...] = build(
            tuple[ServiceEntry, ...], self._json("GET", "/v1/services")
        )
        return found

    def service(self, name: str) -> Service:
        """One service."""
        return self._entry(name).service

    def add_service(self, name: str, **fields: Any) -> Service:
        """Add a service, or replace the one of that name, from plain values.

        Takes the fields of :class:`towpath.model.Service`; addresses may be text and
        backends may be addresses. Raises ConfigError when a value is not allowed.
        """
        service = parse_service({"name": name, **fields})
        self.put_service(service)
        return service

    def put_service(self, service: Service, *, force: bool = False) -> Plan:
        """Add a service, or replace the one of that name; force: see remove_backend()."""
        return self._plan("PUT", _path("services", service.name) + _forced(force), plain(service))

    def remove_service(self, name: str) -> Plan:
        """Remove a service."""
        return self._plan("DELETE", _path("services", name))

    def apply(
        self, services: Iterable[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services, all or none; prune removes the API's others.

        Backends that are removed leave as by remove_backend(), with ``force`` at once.
        """
        wish = {"services": plain(list(services)), "prune": prune, "force": force}
        return self._plan("POST", "/v1/apply", wish)

    def plan(self, services: Iterable[Service], *, prune: bool = False, owner: str = "api") -> Plan:
        """What apply would change; for owner ``file``, what its configuration file would."""
        question = {"services": plain(list(services)), "prune": prune, "owner": str(owner)}
        return self._plan("POST", "/v1/plan", question)

    # Backends

    def backends(self, name: str) -> tuple[Backend, ...]:
        """The backends of a service."""
        return self.service(name).backends

    def set_backends(
        self, name: str, backends: Iterable[Backend | Address | str], *, force: bool = False
    ) -> Plan:
        """Replace all backends of a service. Those removed leave as by remove_backend()."""
        path = _path("services", name, "backends") + _forced(force)
        return self._plan("PUT", path, plain(list(backends)))

    def set_backend(
        self,
        name: str,
        address: Address | str,
        weight: int | None = None,
        *,
        state: BackendState | str | None = None,
        port: int | None = None,
    ) -> Plan:
        """Add a backend, or change its weight, state or port.

        None: as it is, or 1, active and the service's port, for which ``port`` 0 stands.
        """
        given = {"weight": weight, "state": None if state is None else str(state), "port": port}
        body = {key: value for key, value in given.items() if value is not None}
        return self._plan("PUT", _path("services", name, "backends", str(address)), body)

    def remove_backend(self, name: str, address: Address | str, *, force: bool = False) -> Plan:
        """Remove a backend: it gets no new flows, and goes when those that it has have ended.

        At the latest that is after ``drain.timeout`` of the agent's configuration. With
        ``force`` it goes at once, and its flows go to the others.
        """
        path = _path("services", name, "backends", str(address)) + _forced(force)
        return self._plan("DELETE", path)

    def backend_status(self, name: str) -> tuple[BackendStatus, ...]:
        """State and flows of each backend of a service, those that are leaving included."""
        data = self._json("GET", _path("services", name, "backends", "status"))
        found: tuple[BackendStatus, ...] = build(tuple[BackendStatus, ...], data)
        return found

    # What undoes itself

    @contextmanager
    def temporary(self, *services: Service) -> Iterator[Plan]:
        """Services that are there in the block; afterwards all is as it was before."""
        before = {entry.service.name: entry.service for entry in self.services()}
        made = self.apply(services)
        with ExitStack() as undo:
            undo.callback(self.apply, [before[s.name] for s in services if s.name in before])
            for service in services:
                if service.name not in before:
                    undo.callback(self._forget, service.name)
            yield made

    @contextmanager
    def drained(self, name: str, address: Address | str) -> Iterator[Plan]:
        """A backend gets no new flows in the block, and is as it was afterwards."""
        backend = next((b for b in self.backends(name) if str(b.address) == str(address)), None)
        if backend is None:
            problem = Problem(f"service {name!r} has no backend {address}", "address")
            raise RefusedError(NOT_FOUND, (problem,))
        try:
            yield self.set_backend(name, address, state=BackendState.DRAINING)
        finally:
            self.set_backend(name, address, state=backend.state)

    # What is going on

    def status(self) -> Status:
        """The agent, its file and its limits."""
        found: Status = build(Status, self._json("GET", "/v1/status"))
        return found

    def health(self) -> None:
        """Return when all is well; raise RefusedError with what is wrong."""
        self._json("GET", "/v1/health")

    def checks(self, service: str | None = None) -> tuple[Check, ...]:
        """How every backend is that is checked, or those of one service."""
        path = _with_query("/v1/checks", {"service": service})
        found: tuple[Check, ...] = build(tuple[Check, ...], self._json("GET", path))
        return found

    def counters(self, *, per_cpu: bool = False) -> Counters:
        """Packets and bytes by verdict, service and backend, read from the kernel now.

        per_cpu: also each CPU's verdicts.
        """
        path = _with_query("/v1/counters", {"per_cpu": per_cpu or None})
        found: Counters = build(Counters, self._json("GET", path))
        return found

    def service_counters(self, name: str, *, per_cpu: bool = False) -> ServiceCounters:
        """The same of one service; per_cpu: also by CPU."""
        path = _with_query(_path("services", name, "counters"), {"per_cpu": per_cpu or None})
        found: ServiceCounters = build(ServiceCounters, self._json("GET", path))
        return found

    def list_flows(self, *, limit: int | None = None, **question: object) -> Iterator[Flow]:
        """Flows that are remembered, in no particular order, at most ``limit``.

        Args:
            limit: None: as many as there are.
            question: Which: ``service`` (name), ``vip``, ``backend``, ``client`` (address or
                prefix), ``max_idle`` (seconds), ``translated`` (the address, or ADDRESS:PORT,
                that the backend sees of a translated flow), ``expired`` (True: also translated
                flows whose time is over). Each may be text.
        """
        start: int | None = 0
        while start is not None and limit != 0:
            size = PAGE if limit is None else min(limit, PAGE)
            page = {"start": start, "limit": size}
            path = _with_query("/v1/flows", question | page)
            found: Flows = build(Flows, self._json("GET", path))
            yield from found.flows
            limit = None if limit is None else limit - len(found.flows)
            start = found.following

    def count_flows(self, **question: object) -> FlowCounts:
        """How many flows are remembered, by backend; ``question`` as for `list_flows`."""
        path = _with_query("/v1/flows/count", question)
        found: FlowCounts = build(FlowCounts, self._json("GET", path))
        return found

    def trace(self, flow: FlowTuple | str, *, device: str | None = None) -> Trace:
        """What the loaded program decides for a flow, such as ``SRC:PORT -> DST:PORT tcp``."""
        path = _with_query("/v1/trace", {"flow": flow, "device": device})
        found: Trace = build(Trace, self._json("GET", path))
        return found

    # Captures

    def record(self, capture: Capture) -> CaptureStream:
        """Begin a capture; what this returns is read until it ends.

        It has a connection of its own, so that this client can go on asking.
        """
        return CaptureStream(self.socket_path, parse_capture(capture))

    def captures(self) -> tuple[CaptureEntry, ...]:
        """Captures that go on, and the last ones that have ended."""
        found: tuple[CaptureEntry, ...] = build(
            tuple[CaptureEntry, ...], self._json("GET", "/v1/captures")
        )
        return found

    def capture(self, number: int) -> CaptureEntry:
        """How far a capture has come."""
        found: CaptureEntry = build(CaptureEntry, self._json("GET", _path("captures", str(number))))
        return found

    def stop_capture(self, number: int) -> CaptureEntry:
        """Have a capture end: whoever reads it gets the rest of the file."""
        found: CaptureEntry = build(
            CaptureEntry, self._json("DELETE", _path("captures", str(number)))
        )
        return found

    def metrics(self) -> str:
        """Prometheus metrics as text."""
        return self._ask("GET", "/metrics").decode()

    def _forget(self, name: str) -> None:
        """Remove a service unless somebody else has already."""
        try:
            self.remove_service(name)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise

    def _entry(self, name: str) -> ServiceEntry:
        found: ServiceEntry = build(ServiceEntry, self._json("GET", _path("services", name)))
        return found

    def _plan(self, method: str, path: str, body: object = None) -> Plan:
        made: Plan = build(Plan, self._json(method, path, body))
        return made

    def _json(self, method: str, path: str, body: object = None) -> Any:
        return json.loads(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: object = None) -> bytes:
        """Send a request; return the body of an answer that says yes."""
        try:
            status, content = self._connection.exchange(method, path, body)
        except (OSError, HTTPException) as error:
            self.close()
            raise UnreachableError(self._unreachable(error)) from error
        if status >= 300:  # noqa: PLR2004 - the first that isn't a success
            raise RefusedError(status, _problems(content))
        return content

    def _unreachable(self, error: Exception) -> str:
        return _unreachable(self.socket_path, error)


class CaptureStream(Closing):
    """A capture's file, as it comes. A context manager, which ends the capture.

    ``number`` is the capture's, by which others stop it. Raises UnreachableError or
    RefusedError.
    """

    def __init__(self, socket_path: Path, capture: Capture) -> None:
        self.socket_path = socket_path
        self._connection = _UnixConnection(socket_path, TIMEOUT_SECONDS)
        self._answer: HTTPResponse | None = None
        with self._errors():
            body = json.dumps(plain(capture)).encode()
            self._connection.request(
                "POST", "/v1/captures", body, {"Content-Type": "application/json"}
            )
            stream = self._connection.sock
            answer = self._answer = self._connection.getresponse()
            if answer.status >= 300:  # noqa: PLR2004 - the first that isn't a success
                content = answer.read()
                self.close()
                raise RefusedError(answer.status, _problems(content))
        self.number = int(answer.headers[HEADER])
        # From now on there may be nothing to say for as long as there is no packet.
        stream.settimeout(None)

    def read(self, most: int = 1 << 20) -> bytes:
        """Wait for more of the file; nothing when it has ended."""
        if self._answer is None:
            raise ValueError("the capture is closed")
        with self._errors():
            return self._answer.read1(most)

    def close(self) -> None:
        """Leave: the capture ends if it hasn't."""
        if self._answer is not None:
            self._answer.close()
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, HTTPException) as error:
            self.close()
            raise UnreachableError(_unreachable(self.socket_path, error)) from error


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket, kept open between requests."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the path rather than to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def exchange(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        """Send a request and read its answer: status and content."""
        # Nothing is owed to us: what can be read now is the end of the connection,
        # which an agent that restarted, or waited long enough, has closed.
        if self.sock is not None and select.select([self.sock], [], [], 0)[0]:
            self.close()
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        self.request(method, path, content, headers)
        answer = self.getresponse()
        return answer.status, answer.read()


def _unreachable(at: Path, error: Exception) -> str:
    """What was wrong, where, and what to do."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return (
            f"no agent answers at {at}; start one (towpath agent --config FILE)"
            " or name its socket (--socket, TOWPATH_SOCKET)"
        )
    if isinstance(error, PermissionError):
        return f"no permission to ask the agent at {at}; use its owner or group (sudo)"
    if isinstance(error, TimeoutError):
        return f"the agent at {at} took too long to answer; see its log"
    return f"the agent at {at} broke off: {error}; see its log"


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _forced(force: bool) -> str:  # noqa: FBT001 - a query
    return "?force=true" if force else ""


def _with_query(path: str, query: Mapping[str, object]) -> str:
    """A path with those parameters that are not None."""
    given = {name: str(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _problems(content: bytes) -> tuple[Problem, ...]:
    """Why the agent refused, or what it said if it was something else that answered."""
    try:
        found: tuple[Problem, ...] = build(tuple[Problem, ...], json.loads(content)["problems"])
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace").strip()
        return (Problem(text or "refused without a reason"),)
    return found
