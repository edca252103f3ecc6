# SPDX-License-Identifier: Apache-2.0
"""The part of the API that is about where services come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.agent.http.response import answer
from towpath.api.documents import SourceStatus
from towpath.model import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.responses import Response

    from towpath.agent.sources import Source


def sources(known: dict[str, Source], status: Callable[[str], SourceStatus]) -> APIRouter:
    """What sources have that isn't believed."""
    router = APIRouter(prefix="/sources", tags=["sources"])

    @router.post("/{name}/accept", response_model=SourceStatus)
    async def accept(name: str) -> Response:
        """Believe what a source has now, whatever it lacks."""
        source = known.get(name)
        if source is None:
            there = ", ".join(known) or "none"
            raise NotFoundError(f"there is no source {name!r}; there are: {there}")
        take = getattr(source, "accept", None)
        if take is None:
            raise ConflictError([Problem(f"source {name}: nothing of it is ever withheld")])
        await take()
        return answer(status(name))

    return router
