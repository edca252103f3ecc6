# SPDX-License-Identifier: Apache-2.0
"""An agent's life: its parts, its configuration file, and what it says of itself."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from towpath import __version__
from towpath.agent import garbage, systemd
from towpath.agent.errors import InvalidError
from towpath.agent.files import Files
from towpath.agent.http.metrics import agent_metrics
from towpath.agent.parts import Given, Shared
from towpath.agent.sources.file import FileSource
from towpath.agent.sources.intake import Intake, now
from towpath.agent.supervisor import Supervisor
from towpath.agent.writer import Writer
from towpath.api import documents
from towpath.capabilities import API, CAPABILITIES, FILE
from towpath.closeable import Closeable
from towpath.datapath.neigh.wanted import Wanted
from towpath.model import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from towpath.agent.config.file import ConfigFile
    from towpath.agent.parts import Part
    from towpath.model import Config

log = logging.getLogger(__name__)

T = TypeVar("T")

FIXED = ("api", "metrics", "state")
"""Keys of the configuration that can't change while an agent runs, whatever its parts."""


class Agent(Closeable):
    """The parts that a file's configuration asks for, started in their order.

    Raises what the first part raises that can't start; what was in force then still is. Closing
    it ends the parts in the opposite order, and leaves what they have in the kernel, unless
    ``detach_on_exit``.
    """

    def __init__(self, file: ConfigFile, *, detach_on_exit: bool = False) -> None:
        self.config = file.first
        self.started = now()
        self.supervisor = Supervisor()
        self.parts: tuple[Part, ...] = ()
        self._trouble: str | None = None
        self._faults: dict[str, str] = {}
        self._detach_on_exit = detach_on_exit
        self.anew = False
        """It ends in order to begin again, in this process."""
        self.end_by: Callable[[], None] = lambda: None
        """Has the server end, on its event loop."""
        with garbage.paused(), ExitStack() as undo:
            self._writer = undo.enter_context(Writer())
            next_hops, shared = Wanted(), Shared(renew=self.renew)
            for capability in CAPABILITIES:
                pins = capability.pins(self.config)
                given = Given(self.config, self._writer, pins, next_hops, shared)
                if capability.configured(self.config):
                    part: Part = capability.load("agent", "start")(given)
                    undo.callback(self._end, part)
                    self.parts = (*self.parts, part)
                elif capability.left(self.config):
                    capability.load("agent", "forget")(given)
            # Nothing changes any more when the parts end.
            undo.callback(self._writer.close)
            self._undo = undo.pop_all()
        self.files = Files(dict(self._own_files()))
        intake = Intake(str(file.path), self._reload, self._desired)
        self.file = FileSource(file, intake, lambda: self.trouble)
        garbage.begin()

    def close(self) -> None:
        """End all parts."""
        self._undo.close()

    def _end(self, part: Part) -> None:
        try:
            if self._detach_on_exit and not self.anew:
                part.detach()
            part.close()
        except Exception:
            log.exception("%s did not end as it should", part.name)

    def _own_files(self) -> Iterator[tuple[Path, str]]:
        """What has to be there for as long as the agent is, and what it means if it isn't."""
        yield self.config.api.socket, "nobody can reach its API there; restart it"
        for part in self.parts:
            yield from part.files().items()

    # ---- Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the background work. For the event loop."""
        self.supervisor.start("configuration file", self.file.run)
        self.supervisor.start("files", self.files.run)
        self.supervisor.start("garbage", garbage.run)
        for part in self.parts:
            for name, work in part.tasks().items():
                self.supervisor.start(name, work)
        systemd.ready(self.summary())

    def stop(self) -> None:
        """End what requests are waiting for: the server is about to go."""
        for part in self.parts:
            part.stop()

    def renew(self) -> None:
        """Begin again soon, as after a restart: with what can only be otherwise from the start on.

        Nothing of what is in the kernel ends.
        """
        self.anew = True
        self.end_by()

    async def end(self) -> None:
        """End the background work."""
        if self.anew:
            systemd.reloading()
        else:
            systemd.stopping()
        await self.supervisor.stop()

    def _desired(self) -> tuple[object, ...]:
        return tuple(part.desired() for part in self.parts)

    async def _reload(self, config: Config) -> None:
        """Have all parts take a changed configuration over, or none."""
        systemd.reloading()
        try:
            if problems := list(needs_restart(self.config, config, self.parts)):
                raise InvalidError(problems)
            await self._writer.run(self._apply, config)
        finally:
            # A part may go through a large table for it, or wait for its turn.
            systemd.ready(await asyncio.to_thread(self.summary))

    def _apply(self, config: Config) -> None:
        """Apply part by part; when one refuses, those before it get back what was in force."""
        for number, part in enumerate(self.parts):
            try:
                part.apply(config)
            except BaseException:
                self._undo_apply(self.parts[:number])
                raise
        self.config, self._trouble = config, None

    def _undo_apply(self, parts: Iterable[Part]) -> None:
        for part in parts:
            try:
                part.apply(self.config)
            except Exception:
                log.exception(
                    "%s could not be brought back to the configuration in force", part.name
                )
                self._trouble = f"{part.name} has a configuration that was refused; see the log"

    # ---- What it says of itself ------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What is wrong with the agent itself, None when all is well."""
        parts = (*(part.trouble for part in self.parts), *self._faults.values())
        own = (self._trouble, self.file.trouble)
        found = (*own, *parts, *self.files.troubles, *self.supervisor.troubles)
        return "; ".join(each for each in found if each) or None

    def summary(self) -> str:
        """One line for systemctl status."""
        return ", ".join(self._summaries().values()) or "nothing that is configured"

    def _summaries(self) -> dict[str, str]:
        unread = "it can't be read"
        return {
            part.name: self._asked(part, "summary", part.summary, unread) for part in self.parts
        }

    def _asked(self, part: Part, question: str, ask: Callable[[], T], otherwise: T) -> T:
        """What a part answers. One that can't is told as trouble, and is no other's concern."""
        question = f"{part.name}: {question}"
        try:
            answer = ask()
        except Exception as error:
            trouble = f"{question}: {str(error) or type(error).__name__}"
            if self._faults.get(question) != trouble:
                log.exception(question)
            self._faults[question] = trouble
            return otherwise
        self._faults.pop(question, None)
        return answer

    def metrics(self) -> Iterator[Metric]:
        """Prometheus metrics, read now. For one thread at a time."""
        for part in self.parts:
            none: list[Metric] = []
            yield from self._asked(part, "metrics", partial(_listed, part), none)
        yield from agent_metrics(self.status())

    def status(self) -> documents.Status:
        """The agent as a whole."""
        facts: dict[str, Any] = {
            "devices": (),
            "services": dict.fromkeys((FILE, API), 0),
            "limits": {},
        }
        for part in self.parts:
            none: dict[str, Any] = {}
            facts |= self._asked(part, "facts", part.facts, none)
        return documents.Status(
            version=__version__,
            pid=os.getpid(),
            started=self.started,
            file=self.file.status,
            state=self.config.state.directory,
            pins=self.config.state.pins,
            metrics=self.config.metrics.listen,
            resident_bytes=resident_bytes(),
            capabilities=self._summaries(),
            trouble=self.trouble,
            **facts,
        )


def needs_restart(running: Config, new: Config, parts: Iterable[Part]) -> Iterator[Problem]:
    """Problems for each key that differs and that can't change while an agent runs."""
    keys = [*(key for part in parts for key in part.fixed), *FIXED]
    for key in keys:
        if running.section(key) != new.section(key):
            yield Problem("can't change while the agent runs; restart it to take it over", key)
    for name in sorted({*running.sections} ^ {*new.sections}):
        if name not in keys:
            what = "removed" if name in running.sections else "added"
            yield Problem(f"can't be {what} while the agent runs; restart it", name)
    if not running.devices and new.devices:
        yield Problem("can't be added while the agent runs; restart it", "devices")


def _listed(part: Part) -> list[Metric]:
    """A part's metrics, all of them or an error."""
    return list(part.metrics())


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
