# SPDX-License-Identifier: Apache-2.0
"""The flow table in the API: a page at a time, and counted."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from towpath.agent import documents
from towpath.agent.answer import answer
from towpath.agent.errors import InvalidError
from towpath.agent.flows import Question
from towpath.agent.host import Host
from towpath.model import Problem
from towpath.model.kinds import Kind, Prefix, UnicastAddress, Vip, prefix_of

MOST_AT_ONCE = 10_000
_CLIENTS = "an address, or a prefix of addresses such as 198.51.100.0/24"


def client_prefix(text: str) -> Prefix:
    """The clients that an address or prefix stands for. FieldError: it is neither."""
    return prefix_of(text, f"allowed: {_CLIENTS}")


def question(
    service: Annotated[str | None, Query(description="Name of a service")] = None,
    vip: Annotated[str | None, Query(description="A VIP, as its services have it")] = None,
    backend: Annotated[str | None, Query(description="Address of a backend")] = None,
    client: Annotated[str | None, Query(description="A client's address, or a prefix")] = None,
    max_idle: Annotated[
        float | None, Query(ge=0, description="Seconds: seen within this time")
    ] = None,
) -> Question:
    """Which flows a request is about. InvalidError: a value that is not allowed."""
    return Question(
        service=service,
        vip=_parsed("vip", vip, Vip()),
        backend=_parsed("backend", backend, UnicastAddress()),
        client=_client(client),
        max_idle=max_idle,
    )


def _parsed(field: str, text: str | None, kind: Kind) -> Any:
    if text is None:
        return None
    try:
        return kind.parse(text)
    except ValueError as error:
        raise InvalidError([Problem(str(error), field)]) from error


def _client(text: str | None) -> Prefix | None:
    try:
        return None if text is None else client_prefix(text)
    except ValueError as error:
        raise InvalidError([Problem(str(error), "client")]) from error


Asked = Annotated[Question, Depends(question)]


def routes(host: Host) -> APIRouter:
    """Reading the flow table."""
    router = APIRouter(prefix="/flows", tags=["flows"])

    @router.get("", response_model=documents.Flows)
    def list_flows(
        asked: Asked,
        start: Annotated[int, Query(ge=0, description="Where the page before ended")] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 1000,
    ) -> Response:
        """Flows that are remembered, in no particular order. Pages are not of one moment."""
        return JSONResponse(host.flows(asked, start=start, limit=limit))

    @router.get("/count", response_model=documents.FlowCounts)
    def count_flows(asked: Asked) -> Response:
        """How many they are, by backend."""
        return answer(host.flow_counts(asked))

    return router
