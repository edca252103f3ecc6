# SPDX-License-Identifier: Apache-2.0
"""The load balancer's part of the API: services, backends, and what the datapath does.

Whatever changes something runs on the writer's thread and is on disk and in the
kernel when it is answered. What may be large is read and checked, or made and
encoded, beside the event loop (judge.py, response.py).
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import Response

from towpath.agent.errors import InvalidError
from towpath.agent.http.bodies import (
    BackendsBody,
    JudgedRoute,
    QuestionBody,
    ServiceBody,
    WishBody,
)
from towpath.agent.http.response import Whole, answer, answered
from towpath.api import documents
from towpath.model import Address, Backend, BackendState, Problem, Service, TracedPacket
from towpath.model.kinds import Integer, UnicastAddress, Word
from towpath.model.service import MAX_WEIGHT, SERVER_ID

if TYPE_CHECKING:
    from towpath.agent.lb.observer import Observer
    from towpath.agent.lb.part import LoadBalancer

BackendAddress = Annotated[Address, UnicastAddress()]
Weight = Annotated[Annotated[int, Integer(0, MAX_WEIGHT)] | None, Body(embed=True)]
Port = Annotated[Annotated[int, Integer(0, 65535)] | None, Body(embed=True)]
ServerId = Annotated[Annotated[tuple[int, ...], SERVER_ID] | None, Body(embed=True)]
State = Annotated[Annotated[BackendState, Word(of=BackendState)] | None, Body(embed=True)]
Force = Annotated[
    bool, Query(description="Backends that are removed don't keep the flows they have")
]


def services(balancer: "LoadBalancer") -> APIRouter:
    """Reading and changing services."""
    router = APIRouter(tags=["services"], route_class=JudgedRoute)
    control = balancer.controller

    @router.get("/services", response_model=tuple[documents.ServiceEntry, ...])
    async def list_services() -> Response:
        """Every service, with its owner."""
        return Whole(balancer.observer.entries)

    @router.get("/services/{name}", response_model=documents.ServiceEntry)
    async def get_service(name: str) -> Response:
        """One service, with its owner."""
        return answered(balancer.observer.entry(name))

    @router.put("/services/{name}", response_model=documents.Plan)
    async def put_service(
        name: str,
        service: ServiceBody,
        force: Force = False,  # noqa: FBT002
    ) -> Response:
        """Add a service, or replace the API's service of that name."""
        if service.name != name:
            problem = Problem(f"{service.name!r} is not the name in the path, {name!r}", "name")
            raise InvalidError([problem])
        return answered(await balancer.write(control.put, (service,), force=force))

    @router.delete("/services/{name}", response_model=documents.Plan)
    async def delete_service(name: str) -> Response:
        """Remove a service of the API."""
        return answered(await balancer.write(control.delete, name))

    @router.post("/apply", response_model=documents.Plan)
    async def apply(wish: WishBody) -> Response:
        """Add or replace any number of services at once, all or none."""
        return answered(
            await balancer.write(control.put, wish.services, prune=wish.prune, force=wish.force)
        )

    @router.post("/plan", response_model=documents.Plan)
    async def plan(question: QuestionBody) -> Response:
        """What an apply would change, and what share of new flows would move."""
        return answered(
            await balancer.write(
                control.plan, question.services, owner=question.owner, prune=question.prune
            )
        )

    return router


def _changes(
    weight: int | None,
    state: BackendState | None,
    port: int | None,
    server_id: tuple[int, ...] | None,
) -> dict[str, Any]:
    """What becomes of a backend's fields; None: they stay."""
    given = {"weight": weight, "state": state, "port": port, "server_id": server_id}
    return {
        name: None if name == "port" and value == 0 else value
        for name, value in given.items()
        if value is not None
    }


def backends(balancer: "LoadBalancer") -> APIRouter:
    """Reading and changing one service's backends."""
    router = APIRouter(
        prefix="/services/{name}/backends", tags=["backends"], route_class=JudgedRoute
    )
    control = balancer.controller

    @router.get("", response_model=tuple[Backend, ...])
    async def list_backends(name: str) -> Response:
        """The backends of a service."""
        return answered(control.desired.get(name).service.backends)

    @router.get("/status", response_model=tuple[documents.BackendStatus, ...])
    async def backend_status(name: str) -> Response:
        """State and flows of each backend, of those too that were removed and are terminating."""
        return Whole(partial(balancer.observer.backend_status, name))

    @router.put("", response_model=documents.Plan)
    async def set_backends(
        name: str,
        backends: BackendsBody,
        force: Force = False,  # noqa: FBT002
    ) -> Response:
        """Replace all backends of a service of the API."""

        def change(service: Service) -> Service:
            return replace(service, backends=backends)

        return answered(await balancer.write(control.edit, name, change, force=force))

    @router.put("/{address}", response_model=documents.Plan)
    async def set_backend(
        name: str,
        address: BackendAddress,
        weight: Weight = None,
        state: State = None,
        port: Port = None,
        server_id: ServerId = None,
    ) -> Response:
        """Add a backend, or change its weight, state, port or server_id; else it stays as it is.

        Port 0: the service's. No server id: [].
        """
        changes = _changes(weight, state, port, server_id)

        def change(service: Service) -> Service:
            if address not in {each.address for each in service.backends}:
                return replace(service, backends=(*service.backends, Backend(address, **changes)))
            return replace(
                service,
                backends=tuple(
                    replace(each, **changes) if each.address == address else each
                    for each in service.backends
                ),
            )

        return answered(await balancer.write(control.edit, name, change))

    @router.delete("/{address}", response_model=documents.Plan)
    async def delete_backend(
        name: str,
        address: BackendAddress,
        force: Force = False,  # noqa: FBT002
    ) -> Response:
        """Remove a backend. It keeps the flows it has until they end or its time is over."""
        return answered(await balancer.write(control.remove_backend, name, address, force=force))

    return router


def observation(observer: "Observer") -> APIRouter:
    """What the datapath and its health checks are doing."""
    router = APIRouter(tags=["observation"])

    @router.get("/checks", response_model=tuple[documents.Check, ...])
    async def checks(service: str | None = None) -> Response:
        """How every backend is that is checked, or those of one service."""
        return Whole(partial(observer.checks, service))

    @router.get("/unreached", response_model=tuple[documents.UnreachedBackend, ...])
    def unreached(service: str | None = None) -> Response:
        """Backends that packets don't get to, and why; of all services or of one."""
        return answer(observer.unreached(service))

    @router.get("/counters", response_model=documents.Counters)
    async def counters(*, per_cpu: bool = False) -> Response:
        """Packets and bytes by verdict, service and backend, read from the kernel now.

        per_cpu: also each CPU's verdicts.
        """
        return Whole(partial(observer.counters, per_cpu=per_cpu))

    @router.get("/services/{name}/counters", response_model=documents.ServiceCounters)
    async def service_counters(name: str, *, per_cpu: bool = False) -> Response:
        """The same of one service; per_cpu: also by CPU."""
        return Whole(partial(observer.service_counters, name, per_cpu=per_cpu))

    @router.get("/trace", response_model=documents.Trace)
    async def trace(
        flow: Annotated[str, Query(examples=["198.51.100.7:40000 -> 203.0.113.10:80 tcp"])],
        device: str | None = None,
    ) -> Response:
        """What the loaded program decides for a flow that comes in on a device, and why."""
        try:
            parsed = TracedPacket.parse(flow)
        except ValueError as error:
            raise InvalidError([Problem(str(error), "flow")]) from error
        return answer(await observer.trace(parsed, device))

    return router
