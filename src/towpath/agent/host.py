# SPDX-License-Identifier: Apache-2.0
"""What the API and the metrics ask of a running agent."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from towpath import __version__
from towpath.agent import documents, report
from towpath.agent.errors import AgentError, ConflictError
from towpath.agent.file import now
from towpath.agent.metrics import registry
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.agent.controller import Controller
    from towpath.agent.desired import Desired
    from towpath.agent.file import ConfigFile
    from towpath.agent.writer import Writer
    from towpath.core.plan import Plan
    from towpath.core.states import BackendKey
    from towpath.datapath.flows import Census
    from towpath.model import FlowTuple

Args = ParamSpec("Args")

# What a change may be refused with; anything else is a fault of ours.
REFUSALS = (ConfigError, AgentError, DatapathError, KernelError)


class Host:
    """A controller, its thread and its file, as one."""

    def __init__(self, controller: Controller, writer: Writer, file: ConfigFile) -> None:
        self.controller = controller
        self.writer = writer
        self.file = file
        self.started = now()
        # What the file was refused for contradicting; None when that is not why.
        self._contradicted: Desired | None = None
        # The flow table is read by one thread at a time.
        self._counting = threading.Lock()
        self.registry = registry(self.counters, self.status)

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

    async def reap(self) -> None:
        """Let those go that were removed and whose flows have ended, or whose time is over."""
        leaving = self.controller.leaving
        census = await self.writer.run(self.controller.datapath.census, leaving)
        flows = await asyncio.to_thread(self._count, census)
        await self.writer.run(self.controller.reap, leaving, flows)

    def flows(self, name: str) -> tuple[documents.BackendFlows, ...]:
        """Count the flows of a service's backends, those that are leaving included."""
        service = self.controller.desired.get(name).service
        census, backends = self.writer.call(self.controller.census, service)
        return report.flows(backends, self._count(census), self.controller.leaving)

    def _count(self, census: Census) -> dict[BackendKey, int]:
        with self._counting:
            return census.count(self.controller.config.drain.idle)

    def counters(self) -> documents.Counters:
        """Read the kernel's counters."""
        read = self.writer.call(self.controller.datapath.counters)
        return report.counters(read, self.controller.desired.services())

    async def trace(self, flow: FlowTuple, device: str | None) -> documents.Trace:
        """Ask the loaded program about a flow."""
        ran = await self.writer.run(self.controller.datapath.trace, flow, device)
        return report.trace(ran, self.controller.desired.services())

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
            trouble=self.controller.trouble,
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
