# SPDX-License-Identifier: Apache-2.0
"""A load balancer in the script's own process: no agent, no files, no configuration."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from towpath.closing import Closing
from towpath.core.lb.states import BackendKey
from towpath.datapath.balancer import Balancer
from towpath.datapath.flows.flow_table import IDLE_SECONDS
from towpath.datapath.lb.contents import unnamed
from towpath.model import (
    Backend,
    BackendState,
    ConfigError,
    Device,
    FlowTuple,
    Icmp,
    Limits,
    Problem,
    Service,
    Snat,
    Source,
    TracedPacket,
    check_services,
    make_config,
    parse_service,
)
from towpath.model.capture import parse_capture
from towpath.signals import wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from towpath.core.lb.plan import Plan
    from towpath.datapath.observe.counters import Counters
    from towpath.datapath.observe.trace import Trace
    from towpath.datapath.recorder.capture import Recording
    from towpath.model import Address
    from towpath.model.capture import Capture


class LoadBalancer(Closing):
    """An XDP load balancer on one or more network devices.

        with LoadBalancer("eth0") as lb:
            lb.add_service("web", vip="203.0.113.10", port=80, backends=["192.0.2.11"])
            lb.run()

    It balances from the first service on, in the kernel: the script may do other
    things or nothing. When it is closed, or the script ends, it is gone without a
    trace; of a process that is killed only the devices' forwarding stays switched on.

    With ``pins``, a directory in a BPF file system, it works on instead, and the next
    LoadBalancer with that directory takes it over. The kernel doesn't know names: a
    service that was taken over is called such as "tcp-203.0.113.10-80" until one is
    put in its place.

    Args:
        devices: Names, or :class:`towpath.model.Device` for a mode.
        source: Outer source addresses; by default what the routes prefer.
        icmp: What is answered on behalf of VIPs; by default echo requests are.
        limits: Room reserved in the kernel.
        pins: Where to keep it alive. None: it ends with this object.
        snat: Addresses and ports for services with ``forwarding="snat"``.

    Raises:
        ConfigError: A value that isn't allowed.
        KernelError: No such device, another program on it, no permission, ``pins``
            are another process's.
        LayoutError: ``pins`` holds tables of other sizes.

    Health checks are the agent's: a service with one is refused.

    Methods that change something raise ConfigError for a value that isn't allowed,
    CapacityError if there is no room and DatapathError if a service can't be translated
    for want of an address; nothing is changed then. Not thread-safe.
    A context manager, which closes.
    """

    def __init__(
        self,
        *devices: str | Device,
        source: Source | None = None,
        icmp: Icmp | None = None,
        limits: Limits | None = None,
        pins: Path | None = None,
        snat: Snat | None = None,
    ) -> None:
        wishes = {"source": source, "icmp": icmp, "limits": limits, "snat": snat}
        config = make_config({"devices": devices} | wishes)
        self._balancer = Balancer(
            config.devices,
            source=config.source,
            icmp=config.icmp,
            limits=config.limits,
            pins=pins,
            snat=config.snat,
        )

    def close(self) -> None:
        """Detach and remove everything; with pins, leave it at work. Twice is once."""
        self._balancer.close()

    def detach(self) -> None:
        """Detach and remove everything, pins too."""
        self._balancer.detach()

    def run(self) -> None:
        """Return when the process is asked to end: by Ctrl-C or SIGTERM.

        For the main thread only: elsewhere ValueError.
        """
        wait_for_end()

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
        replaced = {service.name, unnamed(service.key)}
        others = [each for each in self.services() if each.name not in replaced]
        return self.apply([*others, service])

    def remove_service(self, name: str) -> Plan:
        """Remove a service: packets to it pass to the kernel. KeyError: there is none."""
        gone = self.service(name)
        return self.apply(each for each in self.services() if each is not gone)

    def apply(self, services: Iterable[Service]) -> Plan:
        """Make these the services, all of them. Flows of those that stay go on."""
        wanted = tuple(services)
        check_services(wanted, checked=self.services())
        _refuse_checks(wanted)
        return self._balancer.apply(wanted)

    def plan(self, services: Iterable[Service]) -> Plan:
        """Return what `apply` would change, and the share of new flows that would move."""
        wanted = tuple(services)
        check_services(wanted, checked=self.services())
        _refuse_checks(wanted)
        return self._balancer.plan(wanted)

    # Backends

    def set_backends(self, name: str, backends: Iterable[Backend | Address | str]) -> Plan:
        """Replace all backends of a service."""
        return self._give(name, list(backends))

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
        changed: dict[str, object] = {"address": address}
        if (known := self._known(name, address)) is not None:
            changed |= {"weight": known.weight, "state": known.state, "port": known.port}
        given = {"weight": weight, "state": state}
        changed |= {key: value for key, value in given.items() if value is not None}
        if port is not None:
            changed["port"] = port or None
        return self._give(name, [*self._others(name, address), changed])

    def remove_backend(self, name: str, address: Address | str) -> Plan:
        """Remove a backend: its flows move at once. KeyError: the service doesn't have it.

        To let them end first, set its state to draining and wait until `flows` says 0.
        """
        self._backend(name, address)
        return self._give(name, self._others(name, address))

    def flows(self, name: str, *, idle: float = IDLE_SECONDS) -> dict[Address, int]:
        """Count the flows of a service's backends, without those idle for so many seconds."""
        service = self.service(name)
        keys = [BackendKey(service.key, each.address) for each in service.backends]
        counted = self._balancer.census(keys).count(idle)
        return {key.address: counted[key] for key in keys}

    def _give(self, name: str, backends: Sequence[object]) -> Plan:
        """Replace the backends by checked ones, made of whatever describes them."""
        fields = {field: getattr(self.service(name), field) for field in Service.__slots__}
        return self.put_service(parse_service(fields | {"backends": backends}))

    def _others(self, name: str, address: Address | str) -> list[Backend]:
        backends = self.service(name).backends
        return [each for each in backends if each.address != _parsed(address)]

    def _known(self, name: str, address: Address | str) -> Backend | None:
        backends = self.service(name).backends
        return next((each for each in backends if each.address == _parsed(address)), None)

    def _backend(self, name: str, address: Address | str) -> Backend:
        backend = self._known(name, address)
        if backend is None:
            raise KeyError(f"service {name} has no backend {address}")
        return backend

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
        """A backend gets no new flows in the block, and its state back afterwards.

        One that is removed in the block, or given another state, stays so.
        """
        before = self._backend(name, address).state
        try:
            yield self.set_backend(name, address, state=BackendState.DRAINING)
        finally:
            with suppress(KeyError):
                if self._backend(name, address).state is BackendState.DRAINING:
                    self.set_backend(name, address, state=before)

    # What happens

    def counters(self) -> Counters:
        """Packets and bytes by verdict, service and backend."""
        return self._balancer.counters()

    def record(self, capture: Capture) -> Recording:
        """Begin a capture, whose `chunks` are a pcapng file; closing it ends it.

        ConfigError: something in it is wrong. DatapathError: it names a service that isn't
        there, its expression can't be had, or there are eight already.
        """
        return self._balancer.record(parse_capture(capture))

    def trace(self, flow: FlowTuple | str, device: str | None = None) -> Trace:
        """Return what becomes of a flow's next packet, and why. Changes nothing.

        ``flow``: such as "198.51.100.7:40000 -> 203.0.113.10:80 tcp", behind which may
        stand "size 1500", "syn", "error" (ICMP about the flow) or "fragment". ValueError if it
        isn't one.
        """
        if isinstance(flow, str):
            flow = TracedPacket.parse(flow)
        return self._balancer.trace(flow, device)


def _refuse_checks(services: Iterable[Service]) -> None:
    """Raise ConfigError for a health check: nobody would carry it out."""
    problems = [
        Problem(
            f"service {service.name} has a check, which only towpath agent carries out; "
            "allowed: null",
            "health",
        )
        for service in services
        if service.health is not None
    ]
    if problems:
        raise ConfigError(problems)


def _parsed(address: Address | str) -> Address | str:
    """Return the address that a text means, in whatever way it is written; else the text."""
    try:
        return ip_address(address)
    except ValueError:
        return address
