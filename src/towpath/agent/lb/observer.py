# SPDX-License-Identifier: Apache-2.0
"""What the API and the metrics ask of a load balancer. Nothing here changes anything."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from towpath import errors
from towpath.agent.errors import NotFoundError
from towpath.agent.http import present
from towpath.agent.lb.metrics import Checks, Flows
from towpath.api import documents
from towpath.core.health import State
from towpath.core.lb.counted import backend_status, service_with_active, with_active
from towpath.datapath.flows.answers import Active, Tables, active, counts, names_of, page, recent
from towpath.model.rules import needed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from towpath.agent.health.monitor import Monitor
    from towpath.agent.lb.controller import Controller
    from towpath.agent.lb.metrics import DatapathMetrics
    from towpath.agent.writer import Writer
    from towpath.core.lb.states import BackendKey
    from towpath.datapath.flows.flow_table import FlowTable
    from towpath.datapath.flows.members import Members
    from towpath.datapath.flows.nat_table import NatFlows
    from towpath.datapath.neigh.next_hops import Trouble
    from towpath.datapath.observe.counters import Readings
    from towpath.documents import Counters, Trace
    from towpath.model import FlowTuple, ServiceKey
    from towpath.model.flow_question import FlowQuestion
    from towpath.model.settings import Limits

    _Asked = tuple[Tables, FlowQuestion, Members, Mapping[ServiceKey, str]]


class Observed(Protocol):
    """What reading needs of :class:`towpath.datapath.balancer.Balancer`."""

    def counters(self, cpu: int | None = None) -> Counters:
        """Packets and bytes by verdict, service and backend, of one CPU or of all."""
        ...

    @property
    def cpus(self) -> Sequence[int]:
        """The CPUs that may count."""
        ...

    def readings(self) -> Readings:
        """The same as arrays, of all CPUs."""
        ...

    def unreached(self) -> dict[BackendKey, Trouble]:
        """Backends that packets don't get to, and why."""
        ...

    def reasons(self) -> dict[str, int]:
        """How many these are, by the reason."""
        ...

    def local_backends(self) -> frozenset[BackendKey]:
        """Backends on this node."""
        ...

    def members(self) -> Members:
        """Which backend of which service a handle stands for."""
        ...

    @property
    def flow_table(self) -> FlowTable:
        """The flows that are remembered, which any thread may ask."""
        ...

    @property
    def nat_flows(self) -> NatFlows:
        """The flows that are translated, which any thread may ask."""
        ...

    def verdicts(self) -> dict[str, int]:
        """Packets by verdict."""
        ...

    def trace(self, flow: FlowTuple, device: str | None = None) -> Trace:
        """What the loaded program decides for a flow."""
        ...


class _Seen(NamedTuple):
    """What the kernel has counted, by CPU if asked for, and whose its handles are."""

    counters: Counters
    members: Members
    cpus: list[Counters]


class Observer:
    """Reads a load balancer, in any thread but the writer's."""

    def __init__(
        self,
        controller: Controller,
        monitor: Monitor,
        writer: Writer,
        datapath: Observed,
        metrics: DatapathMetrics,
        limits: Limits,
    ) -> None:
        self._limits = limits
        self._controller = controller
        self._monitor = monitor
        self._writer = writer
        self._datapath = datapath
        self._metrics = metrics

    # ---- Services and backends -------------------------------------------------------------------

    def entries(self) -> list[documents.ServiceEntry]:
        """Every service, with its owner."""
        return [documents.ServiceEntry(*each) for each in self._controller.desired]

    def entry(self, name: str) -> documents.ServiceEntry:
        """One service, with its owner. NotFoundError: there is none of that name."""
        return documents.ServiceEntry(*self._controller.desired.get(name))

    def backend_status(self, name: str) -> tuple[documents.BackendStatus, ...]:
        """Count the flows of a service's backends, those that are terminating included."""
        service = self._controller.desired.get(name).service
        counter, found = self._writer.call(self._controller.flow_counter, service)
        flows = counter.count(self._controller.config.drain.idle)
        troubles = {
            key: why.text for key, why in self._writer.call(self._datapath.unreached).items()
        }
        local = self._writer.call(self._datapath.local_backends)
        return backend_status(found, flows, self._controller.terminating, troubles, local)

    def unreached(self, name: str | None = None) -> tuple[documents.UnreachedBackend, ...]:
        """Backends that packets don't get to, of all services or of one. NotFoundError."""
        desired = self._controller.desired
        services = desired.services() if name is None else (desired.get(name).service,)
        names = {each.key: documents.ServiceName.of(each) for each in services}
        return tuple(
            documents.UnreachedBackend(names[key.service], key.address, why.text, why.reason)
            for key, why in self._writer.call(self._datapath.unreached).items()
            if key.service in names
        )

    def reasons(self) -> dict[str, int]:
        """How many backends packets don't get to, by the reason."""
        return self._writer.call(self._datapath.reasons)

    def checks(self, service: str | None = None) -> tuple[documents.Check, ...]:
        """How every backend is that is checked, or those of one service. NotFoundError."""
        if service is not None:
            self._controller.desired.get(service)
        found = map(present.check, self._monitor.registry.records())
        return tuple(each for each in found if service in {None, each.service.name})

    def states(self) -> dict[str, int]:
        """How many backends are in each state that one is in."""
        found = Counter(record.standing.state for record in self._monitor.registry.records())
        return {str(state): found[state] for state in State if found[state]}

    def limits(self) -> dict[str, documents.Use]:
        """How much of each limit is taken."""
        services = self._controller.desired.services()
        used = needed(services)
        used["backends"] += len(self._controller.terminating)
        return {name: documents.Use(n, getattr(self._limits, name)) for name, n in used.items()}

    def owners(self) -> dict[str, int]:
        """How many services each source has."""
        return dict(Counter(each.owner for each in self._controller.desired))

    # ---- Packets ---------------------------------------------------------------------------------

    def counters(self, *, per_cpu: bool = False) -> documents.Counters:
        """Read the kernel's counters, and the flows. Takes a thread some 10 ms."""
        seen = self._look(per_cpu=per_cpu)
        return with_active(
            seen.counters, self._controller.desired.services(), self._active(seen), seen.cpus
        )

    def service_counters(self, name: str, *, per_cpu: bool) -> documents.ServiceCounters:
        """The same of one service. NotFoundError: there is none of that name."""
        service = self._controller.desired.get(name).service
        seen = self._look(per_cpu=per_cpu)
        try:
            return service_with_active(service, seen.counters, self._active(seen), seen.cpus)
        except errors.NotFoundError:
            message = f"service {name!r} is not in the kernel; see /v1/health"
            raise NotFoundError(message) from None

    def metrics(self) -> Iterable[Metric]:
        """The same as Prometheus has it, with checks. For one thread at a time."""
        read = self._writer.call(self._datapath.readings)
        flows = Flows(*recent(self._tables), read.local)
        checks = Checks(self._monitor.registry.records(), self._monitor.delays.longest())
        return self._metrics.render(self._controller.desired.services(), read, flows, checks)

    async def verdicts(self) -> dict[str, int]:
        """Packets by verdict, and nothing else."""
        return await self._writer.run(self._datapath.verdicts)

    async def trace(self, flow: FlowTuple, device: str | None) -> documents.Trace:
        """Ask the loaded program about a flow."""
        return await self._writer.run(self._datapath.trace, flow, device)

    # ---- Flows -----------------------------------------------------------------------------------

    def list_flows(self, question: FlowQuestion, *, start: int, limit: int) -> dict[str, Any]:
        """A page of the flows, in JSON's types. NotFoundError: no such service."""
        return page(*self._asked(question), start=start, limit=limit)

    def count_flows(self, question: FlowQuestion) -> documents.FlowCounts:
        """How many flows there are. NotFoundError: no such service."""
        return counts(*self._asked(question))

    @property
    def flow_span(self) -> float:
        """Seconds within which the flows have to be read again."""
        return min(table.span_seconds for table in self._tables)

    def age_flows(self) -> None:
        """Read the flows, so that ages stay right though nobody asks."""
        for table in self._tables:
            table.counts()

    @property
    def _tables(self) -> Tables:
        return Tables(self._datapath.flow_table, self._datapath.nat_flows)

    def _asked(self, question: FlowQuestion) -> _Asked:
        if question.service is not None:
            self._controller.desired.get(question.service)
        members = self._writer.call(self._datapath.members)
        names = names_of(self._controller.desired.services())
        return self._tables, question, members, names

    def _active(self, seen: _Seen) -> Active:
        return active(self._tables, seen.members)

    def _look(self, *, per_cpu: bool) -> _Seen:
        """What the writer's thread has to be asked for, all at one moment."""
        datapath = self._datapath

        def look() -> _Seen:
            cpus = [datapath.counters(cpu) for cpu in datapath.cpus] if per_cpu else []
            return _Seen(datapath.counters(), datapath.members(), cpus)

        return self._writer.call(look)
