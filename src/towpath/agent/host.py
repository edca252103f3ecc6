# SPDX-License-Identifier: Apache-2.0
"""What the API and the metrics ask of a running agent."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from towpath import __version__
from towpath.agent import documents, report
from towpath.agent.captures import Captures
from towpath.agent.errors import AgentError, ConflictError, NotFoundError
from towpath.agent.file import now
from towpath.agent.flows import Active, Members, Question, Tables, active, counts, names_of, page
from towpath.agent.metrics import registry
from towpath.core.health import State
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError
from towpath.model.rules import sources_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.agent.controller import Controller
    from towpath.agent.desired import Desired
    from towpath.agent.file import ConfigFile
    from towpath.agent.health.monitor import Monitor
    from towpath.agent.writer import Writer
    from towpath.core.plan import Plan
    from towpath.core.records import Fate
    from towpath.core.states import BackendKey
    from towpath.datapath.balancer import Balancer
    from towpath.datapath.counters import Counters
    from towpath.datapath.recording import Recording
    from towpath.model import FlowTuple, ServiceKey
    from towpath.model.capture import Capture

    _Asked = tuple[Tables, Question, Members, Mapping[ServiceKey, str]]

Args = ParamSpec("Args")

# What a change may be refused with; anything else is a fault of ours.
REFUSALS = (ConfigError, AgentError, DatapathError, KernelError)


class _Seen(NamedTuple):
    """What the kernel has counted, by CPU if asked for, and whose its handles are."""

    counters: Counters
    members: Members
    cpus: list[Counters]


class Host:
    """A controller, its thread, its file and its health checks, as one."""

    def __init__(
        self,
        controller: Controller,
        writer: Writer,
        file: ConfigFile,
        balancer: Balancer,
        monitor: Monitor,
    ) -> None:
        self.controller = controller
        self.writer = writer
        self.file = file
        self.balancer = balancer
        self.monitor = monitor
        self.started = now()
        # What the file was refused for contradicting; None when that is not why.
        self._contradicted: Desired | None = None
        self.captures = Captures(self.record)
        self.registry = registry(self.counters, self.status, self.checks)

    async def write(
        self, change: Callable[Args, Plan], *args: Args.args, **kwargs: Args.kwargs
    ) -> documents.Plan:
        """Run one of the controller's changes on the writer's thread."""
        return report.plan(await self.writer.run(change, *args, **kwargs))

    async def reload(self) -> None:
        """Take the configuration file over, or note why not."""
        try:
            # Not on the writer's thread: changes go on while a large file is read.
            config = await asyncio.to_thread(self.file.read)
            await self.writer.run(self.controller.reload, config)
        except REFUSALS as error:
            self.file.refuse(error)
            contradiction = isinstance(error, ConflictError | DatapathError)
            self._contradicted = self.controller.desired if contradiction else None
        else:
            self.file.accept()
            self._contradicted = None
            settle()

    def may_fit_now(self) -> bool:
        """Whether the services that the file was refused for have changed since."""
        before = self._contradicted
        return before is not None and before is not self.controller.desired

    async def reap(self) -> float:
        """Let those go that were removed and whose flows have ended, or whose time is over.

        Returns the CPU time that it took to count the flows, in seconds.
        """
        leaving = self.controller.leaving
        census = await self.writer.run(self.controller.datapath.census, leaving)
        idle = self.controller.config.drain.idle

        def count() -> tuple[dict[BackendKey, int], float]:
            begun = time.thread_time()
            return census.count(idle), time.thread_time() - begun

        flows, seconds = await asyncio.to_thread(count)
        await self.writer.run(self.controller.reap, leaving, flows)
        return seconds

    def backend_status(self, name: str) -> tuple[documents.BackendStatus, ...]:
        """Count the flows of a service's backends, those that are leaving included."""
        service = self.controller.desired.get(name).service
        census, found = self.writer.call(self.controller.census, service)
        flows = census.count(self.controller.config.drain.idle)
        return report.backend_status(found, flows, self.controller.leaving)

    def counters(self, *, per_cpu: bool = False) -> documents.Counters:
        """Read the kernel's counters, and the flows. Takes a thread some 10 ms."""
        seen = self._look(per_cpu=per_cpu)
        return report.counters(
            seen.counters, self.controller.desired.services(), self._active(seen), seen.cpus
        )

    def service_counters(self, name: str, *, per_cpu: bool) -> documents.ServiceCounters:
        """The same of one service. NotFoundError: there is none of that name."""
        service = self.controller.desired.get(name).service
        seen = self._look(per_cpu=per_cpu)
        if service.key not in seen.counters.services:
            raise NotFoundError(f"service {name!r} is not in the kernel; see /v1/health")
        return report.service_counters(service, seen.counters, self._active(seen), seen.cpus)

    def list_flows(self, question: Question, *, start: int, limit: int) -> dict[str, Any]:
        """A page of the flows, in JSON's types. NotFoundError: no such service."""
        return page(*self._asked(question), start=start, limit=limit)

    def count_flows(self, question: Question) -> documents.FlowCounts:
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
        datapath = self.controller.datapath
        return Tables(datapath.flow_table, datapath.nat_flows)

    def _asked(self, question: Question) -> _Asked:
        if question.service is not None:
            self.controller.desired.get(question.service)
        members = self.writer.call(self.controller.datapath.members)
        names = names_of(self.controller.desired.services())
        return self._tables, question, members, names

    def _active(self, seen: _Seen) -> Active:
        return active(self._tables, seen.members)

    def _look(self, *, per_cpu: bool) -> _Seen:
        """What the writer's thread has to be asked for, all at one moment."""
        datapath = self.controller.datapath

        def look() -> _Seen:
            cpus = [datapath.counters(cpu) for cpu in datapath.cpus] if per_cpu else []
            return _Seen(datapath.counters(), datapath.members(), cpus)

        return self.writer.call(look)

    def _states(self) -> dict[str, int]:
        """How many backends are in each state that one is in."""
        counts = Counter(record.standing.state for record in self.monitor.roster.records())
        return {str(state): counts[state] for state in State if counts[state]}

    def checks(self) -> tuple[documents.Check, ...]:
        """How every backend is that is checked."""
        return tuple(map(report.check, self.monitor.roster.records()))

    @property
    def trouble(self) -> str | None:
        """What is wrong with the agent itself, None when all is well."""
        return self.controller.trouble or self.monitor.trouble

    async def trace(self, flow: FlowTuple, device: str | None) -> documents.Trace:
        """Ask the loaded program about a flow."""
        ran = await self.writer.run(self.controller.datapath.trace, flow, device)
        return report.trace(ran, self.controller.desired.services())

    def record(self, capture: Capture) -> Recording:
        """Begin a capture, in any thread but the writer's."""

        def describe(fate: Fate) -> str:
            return self.writer.call(self.balancer.fate, fate)

        # Loading takes a while, in which changes go on.
        services = self.writer.call(self.balancer.observed)
        return self.balancer.recorder.start(capture, services, describe)

    def metrics(self) -> tuple[bytes, str]:
        """Prometheus metrics as text, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def summary(self) -> str:
        """One line for systemctl status."""
        return f"{len(self.controller.desired.services())} services"

    def status(self) -> documents.Status:
        """The agent as a whole."""
        config, entries = self.controller.config, list(self.controller.desired)
        services = [entry.service for entry in entries]
        used = {
            "services": len(services),
            "backends": sum(len(service.backends) for service in services)
            + len(self.controller.leaving),
            "table_slots": sum(service.table_size for service in services if service.backends),
            "sources": sources_needed(service.allow_from for service in services),
        }
        return documents.Status(
            version=__version__,
            pid=os.getpid(),
            started=self.started,
            devices=config.devices,
            file=self.file.status,
            services={"file": 0, "api": 0} | Counter(str(entry.owner) for entry in entries),
            limits={
                name: documents.Use(number, getattr(config.limits, name))
                for name, number in used.items()
            },
            state=config.state.directory,
            pins=config.state.pins,
            metrics=config.metrics.listen,
            resident_bytes=resident_bytes(),
            trouble=self.trouble,
            checks=self._states(),
        )


def settle() -> None:
    """Spare the garbage collector what is there now and will stay.

    Going through a thousand services takes it 20 ms, more than a change may.
    """
    gc.collect()
    gc.freeze()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
