# SPDX-License-Identifier: Apache-2.0
"""Changes of limits by the API keep nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from fastapi import FastAPI
from tests.unit.agent.http.test_metrics import BANDWIDTH

from towpath.agent.bandwidth.routes import bandwidth_routes
from towpath.agent.writer import Writer

if TYPE_CHECKING:
    from towpath.agent.bandwidth.part import Bandwidth
    from towpath.documents import Bandwidth as Document


class Part:
    """Notes in which thread it is asked, and takes every change."""

    def __init__(self) -> None:
        self.asked_in: list[int] = []

    def found(self) -> Document:
        """All that there is to say, for which the node's lock is waited for."""
        self.asked_in.append(threading.get_ident())
        return BANDWIDTH

    def set_limit(self, *_: object) -> None:
        """Set it."""

    def delete_limit(self, *_: object) -> None:
        """Delete it."""

    def set_bbr(self, *_: object) -> None:
        """Set it."""


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PUT", "/limits/web", {"egress": "1M"}),
        ("DELETE", "/limits/web", None),
        ("PUT", "/bbr", {"mode": "on"}),
    ],
)
def test_the_event_loop_waits_for_no_lock(method: str, path: str, body: Any) -> None:
    """What there is to say is asked for by another thread."""
    part = Part()

    async def request(writer: Writer) -> httpx.Response:
        app = FastAPI()
        app.include_router(bandwidth_routes(cast("Bandwidth", part), writer))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return await client.request(method, f"/bandwidth{path}", json=body)

    with Writer() as writer:
        answer = asyncio.run(request(writer))
    assert answer.json()["room"] == BANDWIDTH.room
    assert part.asked_in
    assert threading.get_ident() not in part.asked_in
