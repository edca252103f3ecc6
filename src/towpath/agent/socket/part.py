# SPDX-License-Identifier: Apache-2.0
"""Services at the socket in an agent."""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response  # noqa: TC002 -- read by FastAPI
from pydantic import IPvAnyAddress  # noqa: TC002 -- read by FastAPI

from towpath.agent.errors import AgentError, InvalidError
from towpath.agent.http.response import Whole, answer, answered
from towpath.agent.parts import Part
from towpath.agent.socket.metrics import packet_metrics, socket_metrics
from towpath.api import documents
from towpath.core.lb.steps import RemoveBackend, SetBackend
from towpath.datapath.cgroup.follower import Follower
from towpath.datapath.socket import trace
from towpath.datapath.socket.balancer import detach
from towpath.datapath.socket.report import Wanted, flows, packets, report, report_packets, take
from towpath.datapath.socket.trace import Call
from towpath.documents import SocketFlows
from towpath.kernel.errors import KernelError, VerifierError
from towpath.model import Problem
from towpath.model.service import BackendState, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.core.lb.plan import Transition
    from towpath.core.lb.steps import Step
    from towpath.datapath.cgroup.root import CgroupRoot
    from towpath.datapath.socket.balancer import SocketBalancer
    from towpath.documents import Socket as Document
    from towpath.documents import SocketTrace
    from towpath.model import Config
    from towpath.model.cgroup import Section as CgroupSection
    from towpath.model.socket import Packets, Section

log = logging.getLogger(__name__)

MOST = 10_000
"""Sockets that one answer has at most."""
FOLLOW_SECONDS = 1.0
LATER = (1.0, 5.0)
"""Seconds after a change when sockets are looked for that were connecting while it was made."""


def _fixed(packets: Packets | None) -> object:
    """What of it can't change while the agent runs."""
    return packets and replace(packets, devices=("*",))


def _ends_flows(step: Step) -> bool:
    """Whether a backend may not be talked to any more after a step."""
    if isinstance(step, SetBackend):
        return step.backend.state is BackendState.DOWN
    return isinstance(step, RemoveBackend)


class Sockets(Part):
    """Balances connect() and datagrams of processes on this node."""

    name = "socket"
    fixed = ()  # apply() says what can't change

    def __init__(self, given: Given) -> None:
        self._section: Section = given.config.sections[self.name]
        self._backends = given.config.metrics.backends
        self._writer = given.writer
        self._wake: Callable[[], None] | None = None
        self._told = ""
        """Why stale sockets can't be found, if they can't."""
        self._refused = False
        """By the kernel, whatever is tried."""
        services = given.shared.services
        if services is None:
            raise AgentError("socket: there is no load balancer whose services it could have")
        self._services, self._pins = services, given.pins
        self._sockets: SocketBalancer | None = None
        self._started = False
        node: CgroupSection | None = given.config.sections.get("cgroup")
        configured = self._section.cgroup or (node.path if node else None)
        self._follower = Follower(configured, moved=self._moved)
        self._started = True
        if self._section.packets is not None:
            self._translate_at_least()
        services.tell(self._changed)

    # ---- Where -----------------------------------------------------------------------------------

    def _moved(self, root: CgroupRoot) -> None:
        """Be at the cgroup that was found. At first on the caller's thread, then the follower's."""
        if self._started:
            with suppress(RuntimeError):  # the agent ends
                self._writer.call(self._be_at, root)
        else:
            self._be_at(root)

    def _translate_at_least(self) -> None:
        """Pods' packets need no cgroup: they are translated if none is found, too."""
        try:
            self._writer.call(self._be_at, None)
        except KernelError as error:
            log.warning("packets can't be translated: %s", error)

    def _be_at(self, root: CgroupRoot | None) -> None:
        if self._sockets is not None:
            if root is not None:
                self._sockets.move(root)
            return
        refuse_with = getattr(errno, self._section.no_backend)
        self._sockets = self._services.sockets(
            root,
            self._pins,
            exclude=self._section.exclude,
            refuse_with=0 if refuse_with == errno.EPERM else refuse_with,
            packets=self._section.packets,
        )

    @property
    def _working(self) -> SocketBalancer:
        """KernelError: it could not be begun yet."""
        if self._sockets is None:
            raise KernelError("balance at sockets", hint=self._follower.proof.why)
        return self._sockets

    # ---- Changes ---------------------------------------------------------------------------------

    def apply(self, config: Config) -> None:
        """Leave others alone, or end others. Anything else needs a restart."""
        section: Section = config.sections[self.name]
        for field in ("cgroup", "no_backend"):
            if getattr(section, field) != getattr(self._section, field):
                what = "can't change while the agent runs; restart it to take it over"
                raise InvalidError([Problem(what, f"{self.name}.{field}")])
        if _fixed(section.packets) != _fixed(self._section.packets):
            what = "only its devices can change while the agent runs; restart it to take it over"
            raise InvalidError([Problem(what, f"{self.name}.packets")])
        if self._sockets is not None and section.exclude != self._section.exclude:
            self._sockets.replace_excluded(section.exclude)
        translated = None if self._sockets is None else self._sockets.packets
        if translated is not None and section.packets is not None:
            translated.replace_devices(section.packets.devices)
        self._section = section

    def _changed(self, transition: Transition) -> None:
        """Look for stale sockets, after backends have gone. On the writer's thread."""
        if self._wake is not None and any(map(_ends_flows, transition.steps)):
            self._wake()

    # ---- In the background -----------------------------------------------------------------------

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Following what others undo; ending sockets whose backend has gone."""
        return {"sockets' programs": self._follow, "stale sockets": self._end_stale}

    async def _follow(self) -> None:
        while True:
            if self._sockets is not None:
                await self._writer.run(self._sockets.follow)
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _end_stale(self) -> None:
        """At the start, after each change, and a while after it."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._wake = wake
        changed.set()
        while True:
            await changed.wait()
            changed.clear()
            for later in (0.0, *LATER):
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), later)
                if changed.is_set():
                    break
                await self._look()

    async def _look(self) -> None:
        sockets = self._sockets
        if sockets is None or self._section.stale == "none":
            return
        try:
            search = await asyncio.to_thread(sockets.search, tcp=self._section.stale == "all")
            while await asyncio.to_thread(search.list):
                live = await self._writer.run(sockets.live)
                if not await asyncio.to_thread(search.end, live):
                    break
        except KernelError as error:
            if str(error) != self._told:
                log.warning("stale sockets can't be found: %s", error)
            self._told = str(error)
            # A kernel that has no such programs, or allows none, will not tomorrow: doctor says so.
            self._refused = isinstance(error, VerifierError)
            return
        self._told, self._refused = "", False
        found = sockets.note(search)
        if found.ended:
            log.info("ended %d sockets that were connected to backends that have gone", found.ended)

    # ---- What it says of itself ------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What keeps it from its work."""
        told = [self._follower.trouble] if self._follower.trouble else []
        if self._sockets is not None:
            left = self._sockets.stale.left
            told += [f"{left} sockets whose backend has gone could not be ended"] if left else []
            told += self._sockets.troubles
        if self._told and not self._refused:
            told.append(f"stale sockets can't be found: {self._told}")
        return "; ".join(told) or None

    def found(self) -> Document:
        """All that there is to say, but the sockets."""
        sockets = self._working
        return report(sockets, self._writer.call(take, sockets), self._follower.proof)

    def summary(self) -> str:
        """Whom it is for, and what it has done."""
        if self._sockets is None:
            return f"not at work: {self._follower.proof.why}"
        found = self._sockets.verdicts()
        connects, datagrams = (found[hook]["balanced"] for hook in ("connect", "sendmsg"))
        told = f"{connects} connects, {datagrams} datagrams balanced"
        if self._sockets.cgroup is None:
            told = f"at no socket: {self._follower.proof.why}"
        else:
            told = f"cgroup {self._sockets.name}: {told}"
        excluded = len(self._sockets.exclude)
        told += f"; {excluded} cgroups excluded" if excluded else ""
        told += "; stale sockets aren't found" if self._refused else ""
        if self._sockets.packets is not None:
            devices = self._sockets.packets.asked(lambda node: len(node.devices))
            told += f"; packets of {devices} devices"
        return told

    def metrics(self) -> Iterable[Metric]:
        """What was counted."""
        if self._sockets is None:
            return
        sockets = self._sockets
        read = self._writer.call(sockets.reading)
        yield from socket_metrics(read, sockets.stale.ended, backends=self._backends)
        if (packets := report_packets(sockets)) is not None:
            yield from packet_metrics(packets)

    def flows(self, wanted: Wanted, limit: int) -> SocketFlows:
        """Some of the sockets that talk to services, and of the flows of packets."""
        found = self._writer.call(flows, self._working, wanted, limit + 1)
        of_packets = self._writer.call(packets, self._working, wanted, limit + 1)
        more = len(found) > limit or len(of_packets) > limit
        return SocketFlows(tuple(found[:limit]), more, tuple(of_packets[:limit]))

    def trace(self, call: Call, *, live: bool) -> SocketTrace:
        """Where a call would go, and with ``live`` where it does."""
        sockets = self._working
        found = self._writer.call(trace.trace, sockets, call)
        return replace(found, live=trace.live(sockets, call)) if live else found

    def routes(self) -> Iterable[APIRouter]:
        """Reading it."""
        router = APIRouter(tags=["socket"])

        @router.get("/socket", response_model=documents.Socket)
        async def socket() -> Response:
            """Its cgroup, programs, counters, and what isn't as it should be."""
            return Whole(self.found)

        @router.get("/socket/flows", response_model=documents.SocketFlows)
        def socket_flows(
            service: str | None = None,
            backend: IPvAnyAddress | None = None,
            protocol: Literal["tcp", "udp"] | None = None,
            netns: int | None = None,
            *,
            connected: bool | None = None,
            limit: Annotated[int, Query(ge=1, le=MOST)] = 1000,
        ) -> Response:
            """Sockets that talk to services, of all network namespaces."""
            wanted = Wanted(service, backend, protocol, connected, netns)
            return answered(self.flows(wanted, limit))

        @router.get("/socket/trace", response_model=documents.SocketTrace)
        def socket_trace(
            address: IPvAnyAddress,
            port: Annotated[int, Query(ge=0, le=65535)],
            protocol: Literal["tcp", "udp"] = "tcp",
            cgroup: str | None = None,
            netns: str | None = None,
            client: int | None = None,
            socket: int = 0,
            *,
            live: bool = False,
        ) -> Response:
            """Where a call would go, and why; with ``live`` a process there connects."""
            where = None if cgroup is None else Path(cgroup)
            call = Call(address, port, Protocol(protocol), where, netns, client, socket)
            return answer(self.trace(call, live=live))

        return (router,)

    def detach(self) -> None:
        """Take it out of the kernel."""
        if self._sockets is None:
            detach(self._pins)
        else:
            self._sockets.detach()

    def close(self) -> None:
        """Let go of it: the kernel goes on."""
        self._follower.close()
        if self._sockets is not None:
            self._sockets.close()
