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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import IPvAnyAddress  # noqa: TC002 -- read by FastAPI

from towpath.agent.errors import AgentError, InvalidError
from towpath.agent.http.response import answer
from towpath.agent.parts import Part
from towpath.api import documents
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.datapath.socket import trace
from towpath.datapath.socket.balancer import detach
from towpath.datapath.socket.report import Wanted, flows, packets, report
from towpath.datapath.socket.trace import Call
from towpath.documents import SocketFlows
from towpath.kernel.errors import KernelError
from towpath.model import Problem
from towpath.model.service import Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.core.lb.plan import Transition
    from towpath.datapath.socket.balancer import SocketBalancer
    from towpath.documents import Socket as Document
    from towpath.documents import SocketCounters, SocketPackets, SocketTrace
    from towpath.model import Config
    from towpath.model.cgroup import Section as CgroupSection
    from towpath.model.socket import Packets, Section

log = logging.getLogger(__name__)

MOST = 10_000
"""Sockets that one answer has at most."""
FOLLOW_SECONDS = 1.0
LATER = (1.0, 5.0)
"""Seconds after a change when sockets are looked for that were connecting while it was made."""


def start(given: Given) -> Part:
    """Balance at sockets, going on where an earlier agent left off."""
    return Sockets(given)


def forget(given: Given) -> None:
    """Remove what an earlier agent left that had the section."""
    detach(given.pins)


def socket_metrics(found: SocketCounters, ended: int) -> Iterator[Metric]:
    """Metrics of sockets."""
    calls = CounterMetricFamily(
        "towpath_socket_calls", "Calls by hook and what became of them.", labels=("hook", "verdict")
    )
    for hook, verdicts in found.verdicts.items():
        for verdict, number in verdicts.items():
            calls.add_metric((hook, verdict), number)
    yield calls
    labels = ("service", "hook", "verdict")
    of_services = CounterMetricFamily(
        "towpath_socket_service_calls", "Calls for a service's address.", labels=labels
    )
    backends = CounterMetricFamily(
        "towpath_socket_backend_calls",
        "Calls that went to a backend.",
        labels=("service", "backend", "hook"),
    )
    for service in found.services:
        for hook, verdicts in service.verdicts.items():
            for verdict, number in verdicts.items():
                of_services.add_metric((service.service, hook, verdict), number)
        for each in service.backends:
            backends.add_metric((service.service, str(each.address), "connect"), each.connects)
            backends.add_metric((service.service, str(each.address), "sendmsg"), each.datagrams)
    yield of_services
    yield backends
    yield CounterMetricFamily(
        "towpath_socket_stale_ended",
        "Connected sockets that were ended since their backend had gone.",
        value=ended,
    )


def packet_metrics(found: SocketPackets) -> Iterator[Metric]:
    """Metrics of packets that are translated."""
    packets = CounterMetricFamily(
        "towpath_socket_packets",
        "Packets of pods by the program that saw them and what became of them.",
        labels=("program", "verdict"),
    )
    size = CounterMetricFamily(
        "towpath_socket_packet_bytes", "Bytes of translated packets.", labels=("program",)
    )
    for program, verdicts in found.verdicts.items():
        for verdict, number in verdicts.items():
            packets.add_metric((program, verdict), number)
        size.add_metric((program,), found.bytes[program])
    yield packets
    yield size
    yield CounterMetricFamily(
        "towpath_socket_packet_flows_begun", "New flows of packets.", value=found.begun
    )
    yield GaugeMetricFamily(
        "towpath_socket_packet_flows", "Flows of packets in the table.", value=found.flows
    )


def _fixed(packets: Packets | None) -> object:
    """What of it can't change while the agent runs."""
    return packets and replace(packets, devices=("*",))


class Sockets(Part):
    """Balances connect() and datagrams of processes on this node."""

    name = "socket"
    fixed = ()  # apply() says what can't change

    def __init__(self, given: Given) -> None:
        self._section: Section = given.config.sections[self.name]
        self._writer = given.writer
        self._wake: Callable[[], None] | None = None
        self._unlisted: str | None = None
        services = given.shared.services
        if services is None:
            raise AgentError("socket: there is no load balancer whose services it could have")
        node: CgroupSection | None = given.config.sections.get("cgroup")
        self._root = CgroupRoot(self._section.cgroup or (node.path if node else None))
        refuse_with = getattr(errno, self._section.no_backend)
        self._sockets: SocketBalancer = services.sockets(
            self._root,
            given.pins,
            exclude=self._section.exclude,
            refuse_with=0 if refuse_with == errno.EPERM else refuse_with,
            packets=self._section.packets,
        )
        services.tell(self._changed)

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
        if section.exclude != self._section.exclude:
            self._sockets.replace_excluded(section.exclude)
        if self._sockets.packets is not None and section.packets is not None:
            self._sockets.packets.replace_devices(section.packets.devices)
        self._section = section

    def _changed(self, transition: Transition) -> None:
        """Look for stale sockets, after services have changed. On the writer's thread."""
        if transition.steps and self._wake is not None:
            self._wake()

    # ---- In the background -----------------------------------------------------------------------

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Following what others undo; ending sockets whose backend has gone."""
        return {"sockets' programs": self._follow, "stale sockets": self._end_stale}

    async def _follow(self) -> None:
        while True:
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
        if self._section.stale == "none":
            return
        live = await self._writer.run(self._sockets.live)
        try:
            found = await asyncio.to_thread(
                self._sockets.end_stale, live, tcp=self._section.stale == "all"
            )
        except KernelError as error:
            if self._unlisted is None:
                log.warning("stale sockets can't be found: %s", error)
            self._unlisted = f"stale sockets can't be found: {error}"
            return
        self._unlisted = None
        if found.ended:
            log.info("ended %d sockets that were connected to backends that have gone", found.ended)

    # ---- What it says of itself ------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What keeps it from its work."""
        left = self._sockets.stale.left
        told = [f"{left} sockets whose backend has gone could not be ended"] if left else []
        told += [self._unlisted] if self._unlisted else []
        return "; ".join((*self._sockets.troubles, *told)) or None

    def found(self) -> Document:
        """All that there is to say, but the sockets."""
        return self._writer.call(report, self._sockets)

    def summary(self) -> str:
        """Whom it is for, and what it has done."""
        found = self._sockets.verdicts()
        connects, datagrams = (found[hook]["balanced"] for hook in ("connect", "sendmsg"))
        told = f"cgroup {self._sockets.name}: {connects} connects, {datagrams} datagrams balanced"
        excluded = len(self._sockets.exclude)
        told += f"; {excluded} cgroups excluded" if excluded else ""
        if self._sockets.packets is not None:
            devices = self._sockets.packets.asked(lambda node: len(node.devices))
            told += f"; packets of {devices} devices"
        return told

    def metrics(self) -> Iterable[Metric]:
        """What was counted."""
        found = self.found()
        yield from socket_metrics(found.counters, found.stale.ended)
        if found.packets is not None:
            yield from packet_metrics(found.packets)

    def flows(self, wanted: Wanted, limit: int) -> SocketFlows:
        """Some of the sockets that talk to services, and of the flows of packets."""
        found = self._writer.call(flows, self._sockets, wanted, limit + 1)
        of_packets = self._writer.call(packets, self._sockets, wanted, limit + 1)
        more = len(found) > limit or len(of_packets) > limit
        return SocketFlows(tuple(found[:limit]), more, tuple(of_packets[:limit]))

    def trace(self, call: Call, *, live: bool) -> SocketTrace:
        """Where a call would go, and with ``live`` where it does."""
        found = self._writer.call(trace.trace, self._sockets, call)
        return replace(found, live=trace.live(self._sockets, call)) if live else found

    def routes(self) -> Iterable[APIRouter]:
        """Reading it."""
        router = APIRouter(tags=["socket"])

        @router.get("/socket", response_model=documents.Socket)
        def socket() -> Response:
            """Its cgroup, programs, counters, and what isn't as it should be."""
            return answer(self.found())

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
            return answer(self.flows(wanted, limit))

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
        self._sockets.detach()

    def close(self) -> None:
        """Let go of it: the kernel goes on."""
        self._sockets.close()
        self._root.close()
