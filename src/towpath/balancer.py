# SPDX-License-Identifier: Apache-2.0
"""A load balancer in the script's own process: no agent, no files, no configuration."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from towpath.datapath.balancer import Balancer
from towpath.model import (
    Backend,
    Device,
    FlowTuple,
    Limits,
    Service,
    Source,
    check_services,
    parse_service,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from towpath.core.plan import Plan
    from towpath.datapath.counters import Counters
    from towpath.datapath.trace import Trace
    from towpath.model import Address


class LoadBalancer:
    """An XDP load balancer on one or more network devices.

        with LoadBalancer("eth0") as lb:
            lb.add_service("web", vip="203.0.113.10", port=80, backends=["192.0.2.11"])
            lb.run()

    It balances from the first service on, in the kernel: the script may do other
    things or nothing. When it is closed, or the process ends, it is gone without a
    trace. With ``pins``, a directory in a BPF file system, it works on instead, and
    the next LoadBalancer with that directory takes it over.

    Args:
        devices: Names, or :class:`towpath.model.Device` for a mode.
        source: Outer source addresses; by default what the routes prefer.
        limits: Room reserved in the kernel.
        pins: Where to keep it alive. None: it ends with this object.

    Raises:
        KernelError: No such device, another program on it, no permission.
        LayoutError: ``pins`` holds tables of other sizes.

    Methods that change something raise ConfigError for a value that isn't allowed
    and CapacityError if there is no room; nothing is changed then. Not thread-safe.
    A context manager, which closes.
    """

    def __init__(
        self,
        *devices: str | Device,
        source: Source | None = None,
        limits: Limits | None = None,
        pins: Path | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._balancer = Balancer(
            [Device(each) if isinstance(each, str) else each for each in devices],
            source=source,
            limits=self._limits,
            pins=pins,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and remove everything; with pins, leave it at work. Twice is once."""
        self._balancer.close()

    def detach(self) -> None:
        """Detach and remove everything, pins too."""
        self._balancer.detach()

    def run(self) -> None:
        """Return when the process is asked to end: by Ctrl-C or SIGTERM."""
        asked = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
        try:
            signal.sigwait(asked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # Services

    def services(self) -> tuple[Service, ...]:
        """Every service that is in the kernel."""
        return self._balancer.observed()

    def service(self, name: str) -> Service:
        """One service. KeyError: there is none of that name."""
        for service in self.services():
            if service.name == name:
                return service
        raise KeyError(
            f"no service {name}; there are: {', '.join(s.name for s in self.services())}"
        )

    def add_service(self, name: str, **fields: Any) -> Service:
        """Add a service, or replace the one of that name, from plain values.

        Takes the fields of :class:`towpath.model.Service`; addresses may be text and
        backends may be addresses.
        """
        service = parse_service({"name": name, **fields})
        self.put_service(service)
        return service

    def put_service(self, service: Service) -> Plan:
        """Add a service, or replace the one of that name."""
        others = [each for each in self.services() if each.name != service.name]
        return self.apply([*others, service])

    def remove_service(self, name: str) -> Plan:
        """Remove a service: packets to it pass to the kernel. KeyError: there is none."""
        gone = self.service(name)
        return self.apply(each for each in self.services() if each is not gone)

    def apply(self, services: Iterable[Service]) -> Plan:
        """Make these the services, all of them. Flows of those that stay go on."""
        wanted = tuple(services)
        check_services(wanted, self._limits)
        return self._balancer.apply(wanted)

    def plan(self, services: Iterable[Service]) -> Plan:
        """Return what `apply` would change, and the share of new flows that would move."""
        wanted = tuple(services)
        check_services(wanted, self._limits)
        return self._balancer.plan(wanted)

    # Backends

    def set_backends(self, name: str, backends: Iterable[Backend | Address | str]) -> Plan:
        """Replace all backends of a service."""
        return self._give(name, list(backends))

    def set_backend(self, name: str, address: Address | str, weight: int = 1) -> Plan:
        """Add a backend, or change its weight. 0: it gets no new flows."""
        changed = {"address": address, "weight": weight}
        return self._give(name, [*self._others(name, address), changed])

    def remove_backend(self, name: str, address: Address | str) -> Plan:
        """Remove a backend: its flows move at once. KeyError: the service doesn't have it."""
        self._weight(name, address)
        return self._give(name, self._others(name, address))

    def _give(self, name: str, backends: Sequence[object]) -> Plan:
        """Replace the backends by checked ones, made of whatever describes them."""
        fields = {field: getattr(self.service(name), field) for field in Service.__slots__}
        return self.put_service(parse_service(fields | {"backends": backends}))

    def _others(self, name: str, address: Address | str) -> list[Backend]:
        return [b for b in self.service(name).backends if str(b.address) != str(address)]

    def _weight(self, name: str, address: Address | str) -> int:
        for backend in self.service(name).backends:
            if str(backend.address) == str(address):
                return backend.weight
        raise KeyError(f"service {name} has no backend {address}")

    # What undoes itself

    @contextmanager
    def temporary(self, *services: Service) -> Iterator[Plan]:
        """Services that are there in the block; afterwards all is as it was before."""
        names = {service.name for service in services}
        before = [each for each in self.services() if each.name in names]
        kept = (each for each in self.services() if each.name not in names)
        try:
            yield self.apply([*kept, *services])
        finally:
            others = (each for each in self.services() if each.name not in names)
            self.apply([*others, *before])

    @contextmanager
    def drained(self, name: str, address: Address | str) -> Iterator[Plan]:
        """A backend gets no new flows in the block, and its weight back afterwards."""
        weight = self._weight(name, address)
        try:
            yield self.set_backend(name, address, 0)
        finally:
            self.set_backend(name, address, weight)

    # What happens

    def counters(self) -> Counters:
        """Packets and bytes by verdict, service and backend."""
        return self._balancer.counters()

    def trace(self, flow: FlowTuple | str, device: str | None = None) -> Trace:
        """Return what becomes of a flow's next packet, and why. Changes nothing.

        ``flow``: such as "198.51.100.7:40000 -> 203.0.113.10:80 tcp". ValueError if
        it isn't one.
        """
        if isinstance(flow, str):
            flow = FlowTuple.parse(flow)
        return self._balancer.trace(flow, device)
