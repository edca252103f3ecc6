# SPDX-License-Identifier: Apache-2.0
"""From the lines of a watch to what is in force: the source, and the agent's own controller."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml
from tests.unit.agent.samples import MemoryDatapath

from towpath.agent.lb.controller import Controller
from towpath.agent.lb.store import Store
from towpath.agent.parts import Shared
from towpath.agent.sources.intake import Intake, Surroundings, Update
from towpath.agent.sources.kubernetes import report
from towpath.agent.sources.kubernetes.events import Events
from towpath.agent.sources.kubernetes.source import Source
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.capabilities import API
from towpath.model import parse_config
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping
    from pathlib import Path

    from towpath.agent.parts import Tracking
    from towpath.agent.sources.kubernetes.client import Api

KINDS = {"Service": objects.Service, "EndpointSlice": objects.EndpointSlice, "Node": objects.Node}
VIPS = ("10.96.0.10", "fd96::10")
PORT = {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}
NODE: dict[str, Any] = {
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


class Server:
    """An API server that has these objects and takes Events."""

    def __init__(
        self, found: Iterable[Mapping[str, Any]], later: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.found, self.later = list(found), list(later)
        self.goes_on = asyncio.Event()
        self.events: list[dict[str, Any]] = []

    async def lines(self, path: str, parameters: Mapping[str, str]) -> AsyncGenerator[list[bytes]]:
        """All of a kind, their end's mark, and what comes later, once that is to be told."""
        del parameters
        end = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}
        for each in self.found:
            if each["kind"] == path:
                yield [json.dumps({"type": "ADDED", "object": each}).encode()]
        yield [json.dumps({"type": "BOOKMARK", "object": {"metadata": end}}).encode()]
        await self.goes_on.wait()
        for each in self.later:
            if each["kind"] == path:
                yield [json.dumps({"type": "ADDED", "object": each}).encode()]
        await asyncio.Event().wait()

    async def get(self, path: str) -> bytes:
        """The namespace by which a cluster is known."""
        del path
        return b'{"metadata": {"name": "kube-system", "uid": "u"}}'

    async def post(self, path: str, body: dict[str, Any]) -> None:
        """An Event."""
        assert path == f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        self.events.append(body)


class Outcome(NamedTuple):
    """What has come of objects."""

    served: set[str]
    """Names of services in force."""
    backends: set[str]
    """Addresses of all of theirs."""
    status: list[str]
    events: dict[str, str]
    """Messages by reason."""


def outcome(
    directory: Path,
    *found: Mapping[str, Any],
    later: Iterable[Mapping[str, Any]] = (),
    look: bool = False,
    datapath: MemoryDatapath | None = None,
    tracking: Tracking | None = None,
    section: Mapping[str, Any] | None = None,
    **others: Any,
) -> Outcome:
    """Have an agent of node n1 follow these, until what they amount to is in force and told.

    ``later``: what comes when they are. ``look``: also at who has which port. ``others``: further
    sections of the configuration, beside ``section``.
    """
    whole = {"node": "n1", "external_ips": ["198.51.100.0/24"]} | dict(section or {})
    state = {"directory": str(directory)}
    text = yaml.safe_dump({"kubernetes": whole, "socket": {}, "state": state} | others)
    config = parse_config(text, "towpath.yaml")
    datapath = datapath or MemoryDatapath(room=10_000)

    async def run() -> Outcome:
        server = Server([NODE, *found], later)
        with Store(directory / "database") as store:
            controller = Controller(config, store, datapath, (API, "kubernetes"))
            controller.start()

            async def take(update: Update) -> None:
                controller.take("kubernetes", update)

            given = Surroundings(
                config=config,
                owned=lambda: controller.desired.services("kubernetes"),
                change=cast("Any", None),
                shared=Shared(tracking=tracking),
                next_hops=cast("Any", None),
                grow=lambda *_: "there is no memory",
            )
            intake = Intake("kubernetes", take, lambda: (controller.desired,), given)
            source = Source(cast("Any", config.sections["kubernetes"]), intake)
            await follow(source, server, look=look)
            said = [each.message for each in report.facts(source)["unserved"]]
        events = {each["reason"]: each["message"] for each in server.events}
        written = sorted(each["message"] for each in server.events)
        assert written == sorted(each.partition(": ")[2] for each in said)
        backends = {str(to.address) for each in datapath.held.values() for to in each.backends}
        return Outcome(set(datapath.held), backends, said, events)

    return asyncio.run(run())


async def follow(source: Source, server: Server, *, look: bool) -> None:
    """Until all is known, in force and told."""
    api = cast("Api", server)
    source._api, source._events, source._ports = api, Events(api, "n1"), None
    source.reflectors = tuple(
        Reflector(api, Resource(kind, name, name), source) for name, kind in KINDS.items()
    )
    tasks = [
        *map(asyncio.ensure_future, (each.run() for each in source.reflectors)),
        asyncio.ensure_future(source._publish()),
        asyncio.ensure_future(source._events.run()),
    ]
    while source._first or source.lateness.behind:  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.001)
    server.goes_on.set()
    told = sum(each["kind"] == "Service" for each in server.later)
    told += source.cluster.number(objects.Service)
    while source.cluster.number(objects.Service) != told or source.lateness.behind:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if look:
        source._held.look(source.cluster.node_ports(), source.cluster.here)
        await source._tell(cast("Any", source.cluster.take(0.0)))
    while source._events._waiting:  # noqa: ASYNC110 -- as above
        await asyncio.sleep(0.001)
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def service(
    name: str = "web", meta: Mapping[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """One as the API has it."""
    status = spec.pop("status", {})
    whole = {"type": "ClusterIP", "clusterIP": VIPS[0], "clusterIPs": [VIPS[0]], "ports": [PORT]}
    head = {"name": name, "namespace": "default", "uid": name} | dict(meta or {})
    return {"kind": "Service", "metadata": head, "spec": whole | spec, "status": status}


def piece(*addresses: str, name: str = "web", **more: Any) -> dict[str, Any]:
    """A slice of it."""
    labels = {"kubernetes.io/service-name": name}
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [each]} for each in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    } | more
