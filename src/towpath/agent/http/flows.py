# SPDX-License-Identifier: Apache-2.0
"""Flows in the API: a page at a time, and counted."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from towpath.agent.agent import Host
from towpath.agent.errors import InvalidError
from towpath.agent.flows import Question
from towpath.agent.http.response import answer
from towpath.api import documents
from towpath.model import Problem
from towpath.model.kinds import (
    Address,
    FieldError,
    Kind,
    Prefix,
    UnicastAddress,
    Vip,
    prefix_of,
    split_endpoint,
)

MOST_AT_ONCE = 10_000
_CLIENTS = "an address, or a prefix of addresses such as 198.51.100.0/24"
_SOURCES = "an address, or address and port (1 to 65535) as 192.0.2.1:10533 or [2001:db8::1]:10533"

Expired = Annotated[
    bool, Query(description="Also translated flows whose time is over, if their port is free")
]


def client_prefix(text: str) -> Prefix:
    """The clients that an address or prefix stands for. FieldError: it is neither."""
    return prefix_of(text, f"allowed: {_CLIENTS}")


def translated_source(text: str) -> tuple[Address, int | None]:
    """The address and perhaps port of ours that a backend sees. FieldError: it is neither."""
    try:
        if re.fullmatch(r".*\..*:.*|\[.*", text):
            address, port = split_endpoint(text)
            return UnicastAddress().parse(address), port
        return UnicastAddress().parse(text), None
    except FieldError as error:
        why = str(error).partition("; allowed")[0]
        raise FieldError(f"{why}; allowed: {_SOURCES}") from None


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
        Query(description=f"What the backend sees of a translated client: {_SOURCES}"),
    ] = None,
    *,
    expired: Expired = False,
) -> Question:
    """Which flows a request is about. InvalidError: a value that is not allowed."""
    return Question(
        service=service,
        vip=_parsed("vip", vip, Vip()),
        backend=_parsed("backend", backend, UnicastAddress()),
        client=_by("client", client, client_prefix),
        max_idle=max_idle,
        translated=_by("translated", translated, translated_source),
        expired=expired,
    )


def _parsed(field: str, text: str | None, kind: Kind) -> Any:
    return _by(field, text, kind.parse)


def _by(field: str, text: str | None, parse: Callable[[str], Any]) -> Any:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise InvalidError([Problem(str(error), field)]) from error


Asked = Annotated[Question, Depends(question)]


def routes(host: Host) -> APIRouter:
    """Reading flows."""
    router = APIRouter(prefix="/flows", tags=["flows"])

    @router.get("", response_model=documents.Flows)
    def list_flows(
        asked: Asked,
        start: Annotated[int, Query(ge=0, description="Where the page before ended")] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 1000,
    ) -> Response:
        """Flows that are remembered, in no particular order. Pages are not of one moment."""
        return JSONResponse(host.list_flows(asked, start=start, limit=limit))

    @router.get("/count", response_model=documents.FlowCounts)
    def count_flows(asked: Asked) -> Response:
        """How many they are, by backend."""
        return answer(host.count_flows(asked))

    return router
