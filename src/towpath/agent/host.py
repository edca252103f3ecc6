# SPDX-License-Identifier: Apache-2.0
"""What the API and the metrics ask of a running agent."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from towpath import __version__
from towpath.agent import documents, report
from towpath.agent.errors import AgentError, ConflictError
from towpath.agent.file import now
from towpath.agent.metrics import registry
from towpath.core.health import State
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.agent.controller import Controller
    from towpath.agent.desired import Desired
    from towpath.agent.file import ConfigFile
    from towpath.agent.health.monitor import Monitor
    from towpath.agent.writer import Writer
    from towpath.core.plan import Plan
    from towpath.model import FlowTuple

Args = ParamSpec("Args")

# What a change may be refused with; anything else is a fault of ours.
REFUSALS = (ConfigError, AgentError, DatapathError, KernelError)


class Host:
    """A controller, its thread, its file and its health checks, as one."""

    def __init__(
        self, controller: Controller, writer: Writer, file: ConfigFile, monitor: Monitor
    ) -> None:
        self.controller = controller
        self.writer = writer
        self.file = file
        self.monitor = monitor
        self.started = now()
        # What the file was refused for contradicting; None when that is not why.
        self._contradicted: Desired | None = None
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

    def counters(self) -> documents.Counters:
        """Read the kernel's counters."""
        read = self.writer.call(self.controller.datapath.counters)
        return report.counters(read, self.controller.desired.services())

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
            "backends": sum(len(service.backends) for service in services),
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
