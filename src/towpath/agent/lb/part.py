# SPDX-License-Identifier: Apache-2.0
"""A load balancer's life within an agent: its state, its sources, its background work."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec

from towpath.agent.errors import AgentError
from towpath.agent.health.monitor import Monitor
from towpath.agent.http import captures, flows, services, sources
from towpath.agent.http.metrics import (
    host_metrics,
    local_metrics,
    refused_metrics,
    unwrapped_metrics,
)
from towpath.agent.lb import exhaustion
from towpath.agent.lb.controller import Controller, stored
from towpath.agent.lb.exhaustion import ExhaustionWatch
from towpath.agent.lb.metrics import DatapathMetrics
from towpath.agent.lb.observer import Observer
from towpath.agent.lb.room import LIMITS, Room, used_by
from towpath.agent.lb.store import DATABASE, Store
from towpath.agent.lb.tracking import Tracking
from towpath.agent.parts import Part
from towpath.agent.readable import readable
from towpath.agent.recorder.captures import Captures
from towpath.agent.sources.intake import Intake, Surroundings
from towpath.capabilities import API, FILE, ORIGINS
from towpath.datapath.balancer import Balancer
from towpath.datapath.host import detach_pinned
from towpath.datapath.maps.pins import LINKS, MAPS
from towpath.datapath.snat.table import check as check_snat
from towpath.model.snat import NO_SNAT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from fastapi import APIRouter
    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.agent.sources import Source
    from towpath.agent.sources.intake import Update
    from towpath.api.documents import SourceStatus
    from towpath.core.lb.states import BackendKey
    from towpath.core.recorder.names import Told
    from towpath.datapath.recorder.capture import Recording
    from towpath.documents import Plan
    from towpath.model import Config, Service
    from towpath.model.capture import Capture
    from towpath.model.kinds import Address
    from towpath.native.records import Outcome

log = logging.getLogger(__name__)

Args = ParamSpec("Args")

# Between two counts of the flows of backends that are terminating: so long, and so many times
# the CPU time of a count. Not the time until it is done: where others have the CPU that is
# long, and says nothing of what counting costs.
REAP_SECONDS = 1.0
REAP_PAUSES = 20

# Between two looks at what the machine has when nothing is told, and at least.
FOLLOW_SECONDS = 1.0
FOLLOW_PAUSE = 0.05


def start(given: Given) -> LoadBalancer:
    """Balance on the devices, taking over what is pinned."""
    return LoadBalancer(given)


def forget(given: Given) -> None:
    """Take a load balancer out of the kernel that an earlier configuration had.

    AgentError: the API has services; without devices nobody would balance them.
    """
    database = given.state / DATABASE
    if database.exists():
        with Store(database) as store:
            names = [service.name for service in store.services(API)]
        if names:
            raise AgentError(
                f"devices is missing, but services were set through the API: {', '.join(names)};"
                " name a device, and remove them first (towpath service delete NAME)"
            )
        database.unlink()
    if (given.pins / LINKS).is_dir() or (given.pins / MAPS).is_dir():
        detach_pinned(given.pins)
        log.info("no device is configured any more: the load balancer has been detached")


class LoadBalancer(Part):
    """Devices, services and their backends, health checks, captures."""

    name = "lb"
    fixed: tuple[str, ...] = (
        *("devices", "source", "icmp", "limits", "checks", "snat", "local", "unwrap"),
    )

    def __init__(self, given: Given) -> None:
        config, self._writer = given.config, given.writer
        self._sources: dict[str, tuple[Source, Intake[Update]]] = {}
        enabled = [each for each in ORIGINS if each.name == API or each.name in config.sections]
        names = [each.name for each in enabled]
        self.fixed = (*self.fixed, *(name for name in names if name != API))
        with ExitStack() as undo:
            self._database = given.state / DATABASE
            self._room, self._renew = Room(given.state / LIMITS, config.limits), given.shared.renew
            store = undo.enter_context(Store(self._database))
            # Contradictions are found before anything is attached.
            desired = stored(config, store, names)
            check_snat(config.snat, desired.services())
            self._balancer = undo.enter_context(
                Balancer(
                    config.devices,
                    source=config.source,
                    icmp=config.icmp,
                    limits=self._room.limits,
                    pins=given.pins,
                    snat=config.snat,
                    mark=config.checks.mark,
                    foreign=config.checks.foreign,
                    next_hops=given.next_hops,
                    bare=True,
                    local=config.local,
                    unwrap=config.unwrap,
                    tracks="kubernetes" in config.sections,
                    known=desired.services(),
                )
            )
            given.shared.services = self._balancer
            tracked = self._balancer.tracked
            self._tracking = None if tracked is None else Tracking(tracked, self._writer)
            given.shared.tracking = self._tracking
            self.controller = Controller(config, store, self._balancer, names, desired)
            self._writer.call(self.controller.start)
            self._undo = undo.pop_all()
        self.captures = Captures(self._record)
        self._monitor = Monitor(
            self.controller,
            self._writer,
            self._balancer.health,
            concurrent=config.checks.concurrent,
            foreign=bool(config.checks.foreign),
            doubt=given.next_hops.doubt,
            found_down=self.captures.found_down,
        )
        self.observer = Observer(
            self.controller,
            self._monitor,
            self._writer,
            self._balancer,
            DatapathMetrics(backends=config.metrics.backends),
            self._room.limits,
        )
        for each in enabled:
            intake: Intake[Update] = Intake(
                each.label,
                partial(self._take, each.name),
                lambda: (self.desired(),),
                Surroundings(
                    config,
                    partial(self._owned, each.name),
                    self._writer.run,
                    given.shared,
                    given.next_hops,
                    partial(self._grow, each.name),
                ),
            )
            source = each.load("agent", "Source")(config.sections.get(each.name), intake)
            self._sources[each.name] = source, intake

    def desired(self) -> object:
        """The services of all sources."""
        return self.controller.desired

    # ---- Changes ---------------------------------------------------------------------------------

    async def write(
        self, change: Callable[Args, Plan], *args: Args.args, **kwargs: Args.kwargs
    ) -> Plan:
        """Run one of the controller's changes on the writer's thread."""
        return await self._writer.run(change, *args, **kwargs)

    def apply(self, config: Config) -> None:
        """Take over the file's services."""
        self.controller.reload(config)

    def _owned(self, owner: str) -> tuple[Service, ...]:
        return self.controller.desired.services(owner)

    def _grow(self, owner: str, short: str, services: Collection[Service], most: int) -> str | None:
        """Begin anew with room for these services of one source, besides the others'."""
        others = (each.service for each in self.controller.desired if each.owner != owner)
        used = used_by((*others, *services))
        used["backends"] += len(self.controller.terminating)
        why = self._room.grow(short, used, most)
        if why is None:
            self._renew()
        return why

    async def _take(self, owner: str, update: Update) -> None:
        await self._writer.run(self.controller.take, owner, update)

    def _record(self, capture: Capture) -> Recording:
        """Begin a capture, in any thread but the writer's."""

        def describe(outcome: Outcome) -> Told:
            return self._writer.call(self._balancer.describe, outcome, self._pod)

        # Loading takes a while, in which changes go on.
        found = self._writer.call(self._balancer.observed)
        dropped = self._writer.call(self._balancer.drop_counter, capture)
        return self._balancer.recorder.start(capture, found, describe, dropped=dropped)

    def _pod(self, service: str, backend: Address) -> str | None:
        """What the pod is called that a service's backend is, if a source knows. For any thread."""
        for source, _ in self._sources.values():
            if found := _asked(source, "pod", None, service, backend):
                return str(found)
        return None

    def stop(self) -> None:
        """End captures: their clients get the rest of their files."""
        self.captures.stop_all("the agent ends")

    def detach(self) -> None:
        """Take it off all devices, pins too."""
        self._balancer.detach()

    def close(self) -> None:
        """Let go of it: it works on."""
        self._undo.close()

    # ---- In the background -----------------------------------------------------------------------

    def files(self) -> Mapping[Path, str]:
        """The database: what is written to one that was removed nobody finds again."""
        what = "what sources and the API change is forgotten at the next start; restart it now"
        return {self._database: what}

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Devices, health checks, backends that leave, ages of flows, warnings, sources."""
        runs = {name: source.run for name, (source, _) in self._sources.items()}
        tracking = {} if self._tracking is None else {"tracked flows": self._tracking.run}
        return (
            {
                "devices": self._follow,
                "health checks": self._monitor.run,
                "backends that leave": self._reap,
                "ages of flows": self._age_flows,
                "warnings": self._warn,
            }
            | {f"source {name}": run for name, run in runs.items()}
            | tracking
        )

    async def _follow(self) -> None:
        """Follow devices, addresses, VLANs, and what others undo: at once where the kernel tells.

        However much it tells, changes of services get their turn in between.
        """
        while True:
            await readable(self._balancer.fileno(), FOLLOW_SECONDS)
            await self._writer.run(self._balancer.follow)
            await asyncio.sleep(FOLLOW_PAUSE)

    async def _reap(self) -> None:
        """Let those go that were removed and whose flows have ended, or whose time is over.

        Counting goes through the whole flow table: it takes a small part of the time.
        """
        while True:
            seconds = 0.0
            if self.controller.terminating:
                seconds = await self._reap_once()
            await asyncio.sleep(max(REAP_SECONDS, REAP_PAUSES * seconds))

    async def _reap_once(self) -> float:
        """Returns the CPU time that it took to count the flows, in seconds."""
        terminating, counter = await self._writer.run(self.controller.terminating_flow_counter)
        idle = self.controller.config.drain.idle

        def count() -> tuple[dict[BackendKey, int], float]:
            begun = time.thread_time()
            return counter.count(idle), time.thread_time() - begun

        found, seconds = await asyncio.to_thread(count)
        await self._writer.run(self.controller.reap, terminating, found)
        return seconds

    async def _age_flows(self) -> None:
        """Read the flow table often enough for its ages to be right though nobody asks."""
        while True:
            await asyncio.sleep(self.observer.flow_span / 4)
            await asyncio.to_thread(self.observer.age_flows)

    async def _warn(self) -> None:
        """Say in the log when translations run out."""
        if self.controller.config.snat == NO_SNAT:
            return
        watch = ExhaustionWatch(await self.observer.verdicts(), time.monotonic)
        while True:
            await asyncio.sleep(exhaustion.INTERVAL)
            watch.look(await self.observer.verdicts())

    # ---- What it says of itself ------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What is wrong with devices and pins; a change that could not be undone; and so on."""
        found = (self.controller.trouble, self._monitor.trouble, *self._away())
        return "; ".join([*self._balancer.troubles, *filter(None, found)]) or None

    def _away(self) -> Iterator[str]:
        for name, (source, _) in self._sources.items():
            if source.trouble:
                yield f"source {name}: {source.trouble}"

    def summary(self) -> str:
        """How many services there are, and devices where one is missing."""
        services = f"{self.controller.desired.number} services"
        devices = self._balancer.device_status
        there = sum(each.index is not None for each in devices)
        all_there = there == len(devices)
        return services if all_there else f"{services} on {there} of {len(devices)} devices"

    def facts(self) -> dict[str, Any]:
        """Devices, services by owner, limits, checks, and sources other than the file."""
        return {
            "devices": self.controller.config.devices,
            "device_status": self._balancer.device_status,
            "services": dict.fromkeys((FILE, API), 0) | self.observer.owners(),
            "limits": self.observer.limits(),
            "checks": self.observer.states(),
            "unreached": self.observer.reasons(),
            "sources": {name: self.source_status(name) for name in self._sources if name != API},
        }

    def source_status(self, name: str) -> SourceStatus:
        """How a source is, and what became of what it has."""
        source, intake = self._sources[name]
        return replace(intake.status, trouble=source.trouble, **_asked(source, "facts", {}))

    def metrics(self) -> Iterable[Metric]:
        """Of packets, services, backends and their checks, and of devices."""
        yield from self.observer.metrics()
        yield from refused_metrics(self._balancer.refused() or ())
        yield from unwrapped_metrics(self._writer.call(self._balancer.unwrapped))
        yield from local_metrics(self._writer.call(self._balancer.local.counts))
        yield from host_metrics(self._balancer.device_status, self._balancer.followed._asdict())
        for source, _ in self._sources.values():
            yield from _asked(source, "metrics", ())

    def routes(self) -> Iterable[APIRouter]:
        """Services, backends, flows, captures, and what they have seen."""
        return (
            services.services(self),
            services.backends(self),
            services.observation(self.observer),
            flows.routes(self.observer),
            captures.captures(self.captures),
            sources.sources(
                {name: source for name, (source, _) in self._sources.items() if name != API},
                self.source_status,
            ),
        )


def _asked(source: Source, question: str, otherwise: Any, *of: Any) -> Any:
    """What a source says of itself, if it has more to say than it must."""
    ask = getattr(source, question, None)
    return otherwise if ask is None else ask(*of)
