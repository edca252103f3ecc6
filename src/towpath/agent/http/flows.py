# SPDX-License-Identifier: Apache-2.0
"""Flows in the API: a page at a time, and counted."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from towpath.agent.http.response import answer
from towpath.api import documents
from towpath.model.flow_question import SOURCES, FlowQuestion

if TYPE_CHECKING:
    from towpath.agent.lb.observer import Observer

MAX_LIMIT = 10_000

Expired = Annotated[
    bool, Query(description="Also translated flows whose time is over, if their port is free")
]


def question(
    service: Annotated[str | None, Query(description="Name of a service")] = None,
    vip: Annotated[str | None, Query(description="A VIP, as its services have it")] = None,
    backend: Annotated[str | None, Query(description="Address of a backend")] = None,
    client: Annotated[str | None, Query(description="A client's address, or a prefix")] = None,
    max_idle: Annotated[
        float | None, Query(ge=0, description="Seconds: seen within this time")
    ] = None,
    translated: Annotated[
        str | None,
        Query(description=f"What the backend sees of a translated client: {SOURCES}"),
    ] = None,
    *,
    expired: Expired = False,
) -> FlowQuestion:
    """Which flows a request is about. ConfigError: a value that is not allowed."""
    return FlowQuestion.of(
        service=service,
        vip=vip,
        backend=backend,
        client=client,
        max_idle=max_idle,
        translated=translated,
        expired=expired,
    )


Asked = Annotated[FlowQuestion, Depends(question)]


def routes(observer: "Observer") -> APIRouter:
    """Reading flows."""
    router = APIRouter(prefix="/flows", tags=["flows"])

    @router.get("", response_model=documents.Flows)
    def list_flows(
        asked: Asked,
        start: Annotated[int, Query(ge=0, description="Where the page before ended")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 1000,
    ) -> Response:
        """Flows that are remembered, in no particular order. Pages are not of one moment."""
        return JSONResponse(observer.list_flows(asked, start=start, limit=limit))

    @router.get("/count", response_model=documents.FlowCounts)
    def count_flows(asked: Asked) -> Response:
        """How many they are, by backend."""
        return answer(observer.count_flows(asked))

    return router
