# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a load balancer, wherever it runs."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from towpath.errors import NotFoundError
from towpath.model.parse import parse_service
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from towpath.documents import (
        BackendStatus,
        Counters,
        Flow,
        FlowCounts,
        NextHops,
        Plan,
        ServiceCounters,
        Trace,
        UnreachedBackend,
    )
    from towpath.model import Address, Backend, FlowTuple, Service
    from towpath.model.capture import Capture
    from towpath.model.fields import BackendFields, FlowFields, ServiceFields


class CaptureFile(Protocol):
    """A capture that goes on: iterating gives the pieces of a pcapng file until it ends.

    A context manager, which ends the capture.
    """

    def __iter__(self) -> Iterator[bytes]:
        """Give the file, piece by piece, as it comes."""
        ...

    def save(self, path: Path | str) -> int:
        """Write the file until it ends; returns its bytes."""
        ...

    def stop(self) -> None:
        """Have it end; the rest of the file can still be had. For any thread."""
        ...

    def close(self) -> None:
        """End it, and let go of what there is to read."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it."""
        ...


class Balancing(Protocol):
    """Services, their backends, and what happens to them.

    :class:`towpath.LoadBalancer` is one in the script's own process, :class:`towpath.Client`
    one that an agent has. What is written for this works with both.

    Errors are below :class:`towpath.Error`: ConfigError for a value that isn't allowed,
    NotFoundError for a service or backend that isn't there, ConflictError for what
    contradicts other services or doesn't fit. Nothing has changed then.
    """

    # Services

    @abstractmethod
    def services(self) -> tuple[Service, ...]:
        """Every service."""

    @abstractmethod
    def service(self, name: str) -> Service:
        """One service. NotFoundError: there is none of that name."""

    def add_service(self, name: str, **fields: Unpack[ServiceFields]) -> Service:
        """Add a service, or replace the one of that name, from plain values.

        Takes the fields of :class:`towpath.Service`; addresses may be text and
        backends may be addresses.
        """
        service = parse_service({"name": name, **fields})
        self.put_service(service)
        return service

    def put_service(self, service: Service, *, force: bool = False) -> Plan:
        """Add a service, or replace the one of that name; force: see `remove_backend`."""
        return self.apply((service,), force=force)

    @abstractmethod
    def remove_service(self, name: str) -> Plan:
        """Remove a service: packets to it pass to the kernel. NotFoundError: there is none."""

    @abstractmethod
    def apply(
        self, services: Iterable[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services, all or none; prune removes the others.

        Backends that are removed leave as by `remove_backend`, with ``force`` at once.
        """

    @abstractmethod
    def plan(self, services: Iterable[Service], *, prune: bool = False) -> Plan:
        """Return what `apply` would change, and the share of new flows that would move."""

    # Backends

    def backends(self, name: str) -> tuple[Backend, ...]:
        """The backends of a service. NotFoundError: there is no such service."""
        return self.service(name).backends

    @abstractmethod
    def set_backends(
        self,
        name: str,
        backends: Iterable[Backend | BackendFields | Address | str],
        *,
        force: bool = False,
    ) -> Plan:
        """Replace all backends of a service. Those removed leave as by `remove_backend`."""

    @abstractmethod
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

    @abstractmethod
    def remove_backend(self, name: str, address: Address | str, *, force: bool = False) -> Plan:
        """Remove a backend: it gets no new flows, and goes when those that it has have ended.

        With ``force`` it goes at once, and its flows go to the others. NotFoundError: the
        service doesn't have it.
        """

    @abstractmethod
    def backend_status(self, name: str) -> tuple[BackendStatus, ...]:
        """State and flows of each backend of a service, those that are terminating included."""

    # Next hops

    @abstractmethod
    def next_hops(self) -> NextHops:
        """Hosts on the links that packets are sent to, and whether they answer."""

    @abstractmethod
    def unreached(self, service: str | None = None) -> tuple[UnreachedBackend, ...]:
        """Backends that packets don't get to, and why; of all services or of one."""

    # What undoes itself

    @contextmanager
    def temporary(self, *services: Service) -> Iterator[Plan]:
        """Services that are there in the block; afterwards all is as it was before.

        What else was changed in the block stays.
        """
        before = {each.name: each for each in self.services()}
        made = self.apply(services)
        with ExitStack() as undo:
            undo.callback(self.apply, [before[s.name] for s in services if s.name in before])
            for service in services:
                if service.name not in before:
                    undo.callback(self._forget, service.name)
            yield made

    def _forget(self, name: str) -> None:
        """Remove a service unless somebody else has already."""
        with suppress(NotFoundError):
            self.remove_service(name)

    @contextmanager
    def drained(self, name: str, address: Address | str) -> Iterator[Plan]:
        """A backend gets no new flows in the block, and its state back afterwards.

        One that is removed in the block, or given another state, stays so.
        """
        before = self.service(name).backend(address).state
        try:
            yield self.set_backend(name, address, state=BackendState.DRAINING)
        finally:
            with suppress(NotFoundError):
                if self.service(name).backend(address).state is BackendState.DRAINING:
                    self.set_backend(name, address, state=before)

    # What happens

    @abstractmethod
    def counters(self, *, per_cpu: bool = False) -> Counters:
        """Packets and bytes by verdict, service and backend, read from the kernel now.

        per_cpu: also each CPU's verdicts.
        """

    @abstractmethod
    def service_counters(self, name: str, *, per_cpu: bool = False) -> ServiceCounters:
        """The same of one service; per_cpu: also by CPU."""

    @abstractmethod
    def flows(self, *, limit: int | None = None, **question: Unpack[FlowFields]) -> Iterator[Flow]:
        """Flows that are remembered, in no particular order.

        Args:
            limit: At most so many; None: as many as there are.
            question: Which, as :class:`towpath.model.fields.FlowFields` has them: ``service``,
                ``vip``, ``backend``, ``client``, ``max_idle``, ``translated``, ``expired``.
        """

    @abstractmethod
    def count_flows(self, **question: Unpack[FlowFields]) -> FlowCounts:
        """How many flows are remembered, by backend; ``question`` as for `flows`."""

    @abstractmethod
    def trace(self, flow: FlowTuple | str, *, device: str | None = None) -> Trace:
        """Return what becomes of a flow's next packet, and why. Changes nothing.

        ``flow``: such as "198.51.100.7:40000 -> 203.0.113.10:80 tcp", behind which may
        stand "size 1500", "syn", "rst", "error" (ICMP about the flow) or "fragment".
        ConfigError if it isn't one. ``device``: where it comes in; the first unless one is named.
        """

    @abstractmethod
    def record(self, capture: Capture | Mapping[str, Any]) -> CaptureFile:
        """Begin a capture, whose pieces are a pcapng file; closing it ends it."""

    # Life

    @abstractmethod
    def close(self) -> None:
        """Let go. Twice is once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
