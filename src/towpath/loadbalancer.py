# SPDX-License-Identifier: Apache-2.0
"""A load balancer in the script's own process: no agent, no files, no configuration."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any

from towpath.api.calls import Pages
from towpath.api.codec import build
from towpath.balancing import Balancing
from towpath.core.lb.counted import backend_status, service_with_active, with_active
from towpath.core.lb.states import BackendKey
from towpath.core.lb.terminating import (
    TerminatingByKey,
    find_terminating,
    merge_terminating,
    plan_terminating,
)
from towpath.datapath.balancer import Balancer
from towpath.datapath.flows.answers import Tables, active, counts, names_of, page
from towpath.datapath.lb.contents import unnamed
from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.report import report
from towpath.documents import Flows, ServiceName, UnreachedBackend
from towpath.errors import ConflictError, NotFoundError
from towpath.model import (
    Backend,
    BackendState,
    ConfigError,
    Device,
    Drain,
    FlowTuple,
    Icmp,
    Limits,
    Local,
    Neighbours,
    Problem,
    Service,
    Snat,
    Source,
    TracedPacket,
    Unwrap,
    check_services,
    make_config,
    parse_service,
)
from towpath.model.capture import parse_capture
from towpath.model.flow_question import FlowQuestion
from towpath.model.keys import KeyIndex
from towpath.signals import wait_for_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from towpath.datapath.flows.members import Members
    from towpath.datapath.recorder.capture import Recording
    from towpath.documents import (
        BackendStatus,
        Counters,
        DeviceStatus,
        Flow,
        FlowCounts,
        NextHops,
        Plan,
        ServiceCounters,
        Trace,
    )
    from towpath.model import Address, Config, ServiceKey
    from towpath.model.capture import Capture
    from towpath.model.fields import BackendFields, FlowFields


class LoadBalancer(Balancing):
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

    A device that goes is attached to again when there is one of its name again, and what others
    detach, switch off or unpin is put back (docs/operations.md). Whether there is anything to do
    is looked at by every method that changes something, at once by `run`, and by `follow`.

    Args:
        devices: Names, or :class:`towpath.Device` for a mode.
        source: Outer source addresses; by default what the routes prefer.
        icmp: What is answered on behalf of VIPs; by default echo requests, and all that is too
            large for the way to its backend.
        limits: Room reserved in the kernel.
        pins: Where to keep it alive. None: it ends with this object.
        snat: Addresses and ports for services with ``forwarding="snat"``.
        drain: How backends that are removed keep the flows they have.
        neighbours: How next hops are kept resolved.
        local: Which backends are on this node, besides those that have its own addresses.
        unwrap: Tunnels to this node whose packets are balanced; by default none.

    Raises:
        ConfigError: A value that isn't allowed.
        KernelError: No such device, another program on it, no permission, ``pins``
            are another process's.

    Health checks are the agent's: a service with one is refused.

    A backend that is removed keeps its flows until they have ended, unless it is removed by
    force: meanwhile it is terminating (`BackendStatus` has it as ``leaving``). Whether it is done
    is looked at by every method that changes something, by `run` once a second, and by `reap`; a
    script that does neither keeps it. Who takes ``pins`` over finds it as a backend that drains,
    with weight 0.

    Methods that change something raise ConfigError for a value that isn't allowed,
    ConflictError for what contradicts other services: CapacityError if there is no room and
    DatapathError if a service can't be translated for want of an address. Nothing is changed
    then. Not thread-safe, but for `run` beside one thread that changes something.
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
        drain: Drain | None = None,
        neighbours: Neighbours | None = None,
        local: Local | None = None,
        unwrap: Unwrap | None = None,
    ) -> None:
        wishes = {
            "source": source,
            "icmp": icmp,
            "limits": limits,
            "snat": snat,
            "drain": drain,
            "neighbours": neighbours,
            "local": local,
            "unwrap": unwrap,
        }
        given = {name: wish for name, wish in wishes.items() if wish is not None}
        config = make_config({"devices": devices} | given)
        self._start(config, pins)

    def _start(self, config: Config, pins: Path | None, *, bare: bool = False) -> None:
        self._drain = config.drain
        self._terminating: TerminatingByKey = {}
        self._lock = RLock()
        with ExitStack() as undo:
            self._next_hops = Follower(per_second=config.neighbours.per_second)
            undo.callback(self._next_hops.close if pins else self._next_hops.let_go)
            if pins is None:
                self._next_hops.let_go_at_exit()
            self._balancer = undo.enter_context(
                Balancer(
                    config.devices,
                    source=config.source,
                    icmp=config.icmp,
                    limits=config.limits,
                    pins=pins,
                    snat=config.snat,
                    next_hops=self._next_hops,
                    bare=bare,
                    local=config.local,
                    unwrap=config.unwrap,
                )
            )
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Detach and remove everything; with pins, leave it at work. Twice is once."""
        self._undo.close()

    def detach(self) -> None:
        """Detach and remove everything, pins too."""
        self._balancer.detach()
        self._next_hops.let_go()
        self.close()

    def run(self) -> None:
        """Return when the process is asked to end: by Ctrl-C, SIGTERM or SIGHUP.

        For the main thread only: elsewhere ValueError. Meanwhile devices are followed, and
        backends that are terminating go when they are done.
        """
        wait_for_end(self._meanwhile, on=self._balancer.fileno())

    def _meanwhile(self) -> None:
        self.follow()
        self.reap()

    def follow(self) -> tuple[str, ...]:
        """Follow what has changed on this machine; returns what is wrong and can't be put right.

        Such as a device that is missing: nothing that comes in there is balanced until it is back.
        """
        with self._lock:
            self._balancer.follow()
            return self._balancer.troubles

    def devices(self) -> tuple[DeviceStatus, ...]:
        """How the devices are."""
        return self._balancer.device_status

    def next_hops(self) -> NextHops:
        """Hosts on the links that packets are sent to, and whether they answer."""
        return self._next_hops.asked(report)

    def unreached(self, service: str | None = None) -> tuple[UnreachedBackend, ...]:
        """Backends that packets don't get to, and why; of all services or of one."""
        services = self.services() if service is None else (self.service(service),)
        names = {each.key: ServiceName.of(each) for each in services}
        return tuple(
            UnreachedBackend(names[key.service], key.address, why.text, why.reason)
            for key, why in self._balancer.unreached().items()
            if key.service in names
        )

    def reap(self) -> bool:
        """Remove terminating backends whose flows have ended, or whose time is over.

        The time is ``drain.timeout``. Returns whether any is still terminating. Costs nothing when
        none is.
        """
        with self._lock:
            if not self._terminating:
                return False
            flows = self._balancer.flow_counter(self._terminating).count(self._drain.idle)
            now = time.time()
            left = {
                key: each
                for key, each in self._terminating.items()
                if flows.get(key) and now < each.until
            }
            if len(left) < len(self._terminating):
                self._balancer.apply(merge_terminating(self.services(), left))
                self._terminating = left
            return bool(left)

    # Services

    def services(self) -> tuple[Service, ...]:
        """Every service that is in the kernel."""
        gone: dict[ServiceKey, set[Address]] = {}
        for key in self._terminating:
            gone.setdefault(key.service, set()).add(key.address)
        observed = self._balancer.observed()
        return tuple(_without(each, gone.get(each.key)) for each in observed) if gone else observed

    def service(self, name: str) -> Service:
        """One service. NotFoundError: there is none of that name."""
        for service in self.services():
            if service.name == name:
                return service
        known = ", ".join(each.name for each in self.services()) or "none"
        raise NotFoundError(f"there is no service {name!r}; there are: {known}")

    def remove_service(self, name: str) -> Plan:
        """Remove a service: packets to it pass to the kernel. NotFoundError: there is none."""
        gone = self.service(name)
        return self._carry_out([each for each in self.services() if each.key != gone.key])

    def apply(
        self, services: Iterable[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services, all or none; prune removes the others.

        Backends that are removed leave as by `remove_backend`, with ``force`` at once. Flows
        of those that stay go on.
        """
        given = tuple(services)
        keys = {service.key for service in given} if force else set()
        return self._carry_out(self._with(given, prune=prune), lambda key: key.service in keys)

    def plan(self, services: Iterable[Service], *, prune: bool = False) -> Plan:
        """Return what `apply` would change, and the share of new flows that would move."""
        wanted = self._with(tuple(services), prune=prune)
        terminating = self._find_terminating(wanted)
        planned = self._balancer.plan(merge_terminating(wanted, terminating))
        return plan_terminating(planned.plan, self._terminating, terminating)

    def _with(self, given: Sequence[Service], *, prune: bool) -> list[Service]:
        """Return all services as they are to be. ConfigError, ConflictError."""
        there = self.services()
        check_services(given, checked=there)
        _refuse_checks(given)
        # One that was taken over has no name of its own until it is put.
        replaced = {each.name for each in given} | {unnamed(each.key) for each in given}
        kept = [] if prune else [each for each in there if each.name not in replaced]
        _refuse_clashes(given, kept)
        return [*kept, *given]

    def _carry_out(
        self, wanted: Sequence[Service], at_once: Callable[[BackendKey], bool] = lambda _: False
    ) -> Plan:
        """Make these the services, all of them."""
        with self._lock:
            if self._balancer.is_due:
                self.follow()
            self.reap()
            terminating = self._find_terminating(wanted, at_once)
            done = self._balancer.apply(merge_terminating(wanted, terminating))
            plan = plan_terminating(done.plan, self._terminating, terminating)
            self._terminating = terminating
            # Most of those removed have no flows.
            self.reap()
            return plan

    def _find_terminating(
        self, wanted: Iterable[Service], at_once: Callable[[BackendKey], bool] = lambda _: False
    ) -> TerminatingByKey:
        return find_terminating(
            self._balancer.observed(),
            wanted,
            self._terminating,
            now=time.time(),
            timeout=self._drain.timeout,
            at_once=at_once,
        )

    # Backends

    def set_backends(
        self,
        name: str,
        backends: Iterable[Backend | BackendFields | Address | str],
        *,
        force: bool = False,
    ) -> Plan:
        """Replace all backends of a service. Those removed leave as by `remove_backend`."""
        return self.put_service(_with_backends(self.service(name), list(backends)), force=force)

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
        service = self.service(name)
        given: dict[str, object] = {"address": address, "weight": weight, "state": state}
        changed = {key: value for key, value in given.items() if value is not None}
        if port is not None:
            changed["port"] = port or None
        if server_id is not None:
            changed["server_id"] = server_id
        try:
            known = service.backend(address)
        except NotFoundError:
            return self.put_service(_with_backends(service, [*service.backends, changed]))
        names = ("weight", "state", "port", "local", "server_id")
        before = {name: getattr(known, name) for name in names}
        backends = [before | changed if each is known else each for each in service.backends]
        return self.put_service(_with_backends(service, backends))

    def remove_backend(self, name: str, address: Address | str, *, force: bool = False) -> Plan:
        """Remove a backend: it gets no new flows, and goes when those that it has have ended.

        At the latest that is after ``drain.timeout``, see the class. With ``force`` it goes at
        once, and its flows go to the others. NotFoundError: the service doesn't have it.
        """
        service = self.service(name)
        terminating = {str(key.address) for key in self._terminating if key.service == service.key}
        if force and str(address) in terminating:
            return self._carry_out(self.services(), lambda key: str(key.address) == str(address))
        gone = service.backend(address)
        changed = replace(
            service, backends=tuple(each for each in service.backends if each is not gone)
        )
        key = BackendKey(service.key, gone.address)
        return self._carry_out(
            [changed if each.key == service.key else each for each in self.services()],
            lambda backend: force and backend == key,
        )

    def backend_status(self, name: str) -> tuple[BackendStatus, ...]:
        """State and flows of each backend of a service, those that are terminating included."""
        key = self.service(name).key
        found = next(each for each in self._balancer.observed() if each.key == key)
        backends = [BackendKey(key, each.address) for each in found.backends]
        flows = self._balancer.flow_counter(backends).count(self._drain.idle)
        troubles = {key: why.text for key, why in self._balancer.unreached().items()}
        local = self._balancer.local_backends()
        return backend_status(found, flows, self._terminating, troubles, local)

    # What happens

    def counters(self, *, per_cpu: bool = False) -> Counters:
        """Packets and bytes by verdict, service and backend, read from the kernel now.

        per_cpu: also each CPU's verdicts.
        """
        read = self._balancer.counters()
        flows = active(self._tables, self._balancer.members())
        return with_active(read, self.services(), flows, self._by_cpu(per_cpu))

    def service_counters(self, name: str, *, per_cpu: bool = False) -> ServiceCounters:
        """The same of one service; per_cpu: also by CPU."""
        service, read = self.service(name), self._balancer.counters()
        flows = active(self._tables, self._balancer.members())
        return service_with_active(service, read, flows, self._by_cpu(per_cpu))

    def _by_cpu(self, wished: bool) -> list[Counters]:  # noqa: FBT001 - per_cpu
        return [self._balancer.counters(cpu) for cpu in self._balancer.cpus] if wished else []

    def flows(self, *, limit: int | None = None, **question: Unpack[FlowFields]) -> Iterator[Flow]:
        """Flows that are remembered, in no particular order.

        Args:
            limit: At most so many; None: as many as there are.
            question: Which, as :class:`towpath.model.fields.FlowFields` has them: ``service``,
                ``vip``, ``backend``, ``client``, ``max_idle``, ``translated``, ``expired``.
        """
        pages = Pages(limit)
        while following := pages.next:
            start, size = following
            data = page(*self._asked(question), start=start, limit=size)
            found: Flows = build(Flows, data)
            yield from found.flows
            pages.got(found)

    def count_flows(self, **question: Unpack[FlowFields]) -> FlowCounts:
        """How many flows are remembered, by backend; ``question`` as for `flows`."""
        return counts(*self._asked(question))

    def _asked(
        self, fields: FlowFields
    ) -> tuple[Tables, FlowQuestion, Members, dict[ServiceKey, str]]:
        question = FlowQuestion.of(**fields)
        if question.service is not None:
            self.service(question.service)
        return self._tables, question, self._balancer.members(), names_of(self.services())

    @property
    def _tables(self) -> Tables:
        return Tables(self._balancer.flow_table, self._balancer.nat_flows)

    def trace(self, flow: FlowTuple | str, *, device: str | None = None) -> Trace:
        """Return what becomes of a flow's next packet, and why. Changes nothing.

        ``flow``: such as "198.51.100.7:40000 -> 203.0.113.10:80 tcp", behind which may
        stand "size 1500", "syn", "rst", "error" (ICMP about the flow) or "fragment".
        ConfigError if it isn't one. ``device``: where it comes in; the first unless one is named.
        """
        if isinstance(flow, str):
            try:
                flow = TracedPacket.parse(flow)
            except ValueError as error:
                raise ConfigError([Problem(str(error), "flow")]) from error
        return self._balancer.trace(flow, device)

    def record(self, capture: Capture | Mapping[str, Any]) -> Recording:
        """Begin a capture, whose pieces are a pcapng file; closing it ends it.

        ConfigError: something in it is wrong. DatapathError: it names a service that isn't
        there, its expression can't be had, or there are eight already.
        """
        return self._balancer.record(parse_capture(capture))


def _without(service: Service, gone: set[Address] | None) -> Service:
    """Return a service as it is wished for: without those that are terminating."""
    if not gone:
        return service
    kept = tuple(each for each in service.backends if each.address not in gone)
    return replace(service, backends=kept)


def _with_backends(service: Service, backends: Sequence[object]) -> Service:
    """Return a service with other backends, made of whatever describes them. ConfigError."""
    fields = {field: getattr(service, field) for field in Service.__slots__}
    return parse_service(fields | {"backends": backends})


def _refuse_clashes(given: Iterable[Service], kept: Iterable[Service]) -> None:
    """Raise ConflictError for a service that is for packets which another one is for."""
    taken = KeyIndex[str]()
    for service in kept:
        taken.add(service.key, service.name)
    clashes = [(service, taken.clash(service.key)) for service in given]
    problems = [
        f"{clash.key} of service {service.name!r} is taken by service {clash.owner!r}; "
        "allowed: one service each"
        for service, clash in clashes
        if clash
    ]
    if problems:
        raise ConflictError("\n".join(problems))


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
