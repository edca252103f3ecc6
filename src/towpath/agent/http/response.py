# SPDX-License-Identifier: Apache-2.0
"""Documents as the API answers with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, Response

from towpath.agent.http.sending import send_all
from towpath.api.codec import plain
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send

READERS = 2
"""Answers with everything there is that are made, or under way, at one time."""
_PIECE = 1 << 16  # characters


class AsciiJSONResponse(JSONResponse):
    """JSON that any terminal can show: what isn't ASCII is escaped."""

    def render(self, content: Any) -> bytes:
        """Return it as bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def answer(document: Any, status: int = 200) -> Response:
    """A small document as JSON. FastAPI's own way would check it once more."""
    return AsciiJSONResponse(plain(document), status)


def answered(document: Any) -> Response:
    """A document as JSON that is there already, and may be large."""
    return Whole(lambda: document, waits=False)


class Whole(Response):
    """A document as JSON that may have everything there is, as ``make`` gives it.

    It is made on a thread. So that their memory is bounded, only READERS are under way at once,
    and others wait until these are sent; unless ``waits`` is false, for what is small mostly or
    is there already.
    """

    media_type = "application/json"

    def __init__(self, make: Callable[[], Any], *, waits: bool = True) -> None:
        super().__init__()
        self._make = make
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make it and send it. What ``make`` raises is answered as from a route."""
        del receive
        async with _readers(scope) if self._waits else nullcontext():
            pieces = await asyncio.to_thread(self._pieces)
            self.headers["content-length"] = str(sum(map(len, pieces)))
            await send_all(scope, send, self, pieces)

    def _pieces(self) -> list[bytes]:
        return list(_gathered(encoded(self._make())))


def _readers(scope: Scope) -> asyncio.Semaphore:
    state = scope["app"].state
    if not hasattr(state, "readers"):
        state.readers = asyncio.Semaphore(READERS)
    readers: asyncio.Semaphore = state.readers
    return readers


def encoded(value: Any) -> Iterator[str]:
    """A document as JSON, piece by piece.

    json.dumps() lets no other thread run until it has made the whole, of thousands of services
    for a tenth of a second and more.
    """
    if isinstance(value, list | tuple):
        yield from _enclosed("[", ((None, item) for item in value), "]")
    elif members := _members(value):
        yield from _enclosed("{", members.items(), "}")
    else:
        yield json.dumps(plain(value), separators=(",", ":"))


def _enclosed(begin: str, items: Any, end: str) -> Iterator[str]:
    separator = begin
    for key, item in items:
        yield separator
        if key is not None:
            yield f"{json.dumps(str(key))}:"
        yield from encoded(item)
        separator = ","
    yield end if separator == "," else begin + end


def _members(value: Any) -> dict[str, Any]:
    """What an object is made of that holds others; nothing for all else."""
    if isinstance(value, Mapping):
        found = dict(value)
    elif is_dataclass(value) and not isinstance(value, Ports | type):
        found = {each.name: getattr(value, each.name) for each in fields(value)}
    else:
        return {}
    return found if any(map(_holds_others, found.values())) else {}


def _holds_others(value: Any) -> bool:
    if isinstance(value, list | tuple | Mapping):
        return bool(value)
    return is_dataclass(value) and not isinstance(value, Ports)


def _gathered(pieces: Iterator[str]) -> Iterator[bytes]:
    taken: list[str] = []
    size = 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield "".join(taken).encode()
            taken, size = [], 0
    yield "".join(taken).encode()
