# SPDX-License-Identifier: Apache-2.0
"""Bandwidth's part of the API."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body
from fastapi.responses import Response

from towpath.agent.http.response import Whole, answer
from towpath.api import documents
from towpath.model.bandwidth import BBR_MODE, BbrMode, LimitChange

if TYPE_CHECKING:
    from towpath.agent.bandwidth.part import Bandwidth
    from towpath.agent.writer import Writer

Mode = Annotated[Annotated[BbrMode, BBR_MODE], Body(embed=True)]


def bandwidth_routes(part: "Bandwidth", writer: "Writer") -> APIRouter:
    """Reading limits, and changing them: on disk and in the kernel when that is answered."""
    router = APIRouter(tags=["bandwidth"])

    @router.get("/bandwidth", response_model=documents.Bandwidth)
    def bandwidth() -> Response:
        """Limits, what pods have sent and received, and what isn't as it should be."""
        return answer(part.found())

    @router.put("/bandwidth/limits/{name}", response_model=documents.Bandwidth)
    async def set_limit(name: str, change: LimitChange) -> Response:
        """Give a pod, a group, a device or an address another limit."""
        await writer.run(part.set_limit, name, change)
        return Whole(part.found, waits=False)

    @router.delete("/bandwidth/limits/{name}", response_model=documents.Bandwidth)
    async def delete_limit(name: str) -> Response:
        """Give it back what it has by the configuration."""
        await writer.run(part.delete_limit, name)
        return Whole(part.found, waits=False)

    @router.put("/bandwidth/bbr", response_model=documents.Bandwidth)
    async def set_bbr(mode: Mode) -> Response:
        """Have BBR in pods' namespaces (on), or CUBIC (off), or what the node has (host)."""
        await writer.run(part.set_bbr, mode)
        return Whole(part.found, waits=False)

    return router
