# SPDX-License-Identifier: Apache-2.0
"""What requests hold: how much of it, and that it is checked beside the event loop.

FastAPI reads a body of any size, and checks it where everything else waits. A route of the class
JudgedRoute whose body is a Judged one has it read and checked by judge.py instead; all others
take MAX_OTHERS bytes.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

from fastapi import Body, HTTPException, Request
from fastapi.routing import APIRoute
from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from towpath.agent.errors import AgentError
from towpath.agent.http.judge import MAX_BODY, Judge
from towpath.agent.http.wishes import Judged, Question, Wish
from towpath.model import Backend, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from fastapi import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_OTHERS = 1 << 16
_RECEIVE = "towpath.receive"
_TOO_LARGE = 413


def too_large(most: int) -> HTTPException:
    """The answer to a body that has more bytes than that."""
    return HTTPException(_TOO_LARGE, f"the body is too large; allowed: {most} bytes")


class SmallBodies:
    """Middleware that takes small bodies only, but for who asks for the others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_OTHERS:
                raise too_large(MAX_OTHERS)
            return message

        await self._app({**scope, _RECEIVE: receive}, bounded, send)


@dataclass(frozen=True)
class _JudgedBody(PlainValidator):
    """Takes what a judge has made of a body; ``kind`` is one of wishes.KINDS."""

    kind: str = ""


def _taken(found: object) -> Any:
    if not isinstance(found, Judged):
        raise PydanticCustomError("value", "is not JSON, by its Content-Type")
    return found.get()


def _judged(kind: str, of: Any) -> _JudgedBody:
    return _JudgedBody(_taken, json_schema_input_type=of, kind=kind)


ServiceBody = Annotated[Service, Body(), _judged("service", Service)]
BackendsBody = Annotated[
    tuple[Backend, ...], Body(), _judged("backends", tuple[Backend | str, ...])
]
WishBody = Annotated[Wish, Body(), _judged("wish", Wish)]
QuestionBody = Annotated[Question, Body(), _judged("question", Question)]


class JudgedRoute(APIRoute):
    """A route whose body is checked beside the event loop, if it has one of those above."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is called with each request."""
        handle = super().get_route_handler()
        kind = _kind(self.endpoint)

        async def judged(request: Request) -> Response:
            return await handle(_JudgedRequest(request.scope, kind))

        return judged if kind else handle


def _kind(endpoint: Callable[..., Any]) -> str:
    """The kind of a judged body among an endpoint's parameters."""
    for each in inspect.signature(endpoint, eval_str=True).parameters.values():
        for extra in get_args(each.annotation)[1:]:
            if isinstance(extra, _JudgedBody):
                return extra.kind
    return ""


class _JudgedRequest(Request):
    """A request of whose body FastAPI gets what it is for."""

    def __init__(self, scope: Scope, kind: str) -> None:
        super().__init__(scope, scope[_RECEIVE])
        self._kind = kind
        self._found: Judged | None = None

    async def body(self) -> bytes:
        """Have it judged; returns nothing if there is none, else something."""
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > MAX_BODY:
            raise too_large(MAX_BODY)
        try:
            self._found = await _judge(self.scope).judged(self._kind, self._pieces())
        except (AgentError, OSError) as error:
            raise HTTPException(503, f"the body could not be checked: {error}") from error
        return b"" if self._found is None else b" "

    async def json(self) -> Judged | None:
        """What it is for. json.JSONDecodeError."""
        if self._found is not None and self._found.not_json:
            raise json.JSONDecodeError(self._found.not_json, "", 0)
        return self._found

    async def _pieces(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self.stream():
            size += len(piece)
            if size > MAX_BODY:
                raise too_large(MAX_BODY)
            yield piece


def _judge(scope: Scope) -> Judge:
    state = scope["app"].state
    if not hasattr(state, "judge"):
        state.judge = Judge()
    judge: Judge = state.judge
    return judge
