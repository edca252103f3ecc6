# SPDX-License-Identifier: Apache-2.0
"""Sends a large answer, for as long as that may take."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response
    from starlette.types import Scope, Send

log = logging.getLogger(__name__)

SECONDS = 60.0
"""A reader that takes longer for the whole of an answer is left: others wait for the memory."""

CONNECTION = "connection"
"""Where the state of a request has its connection."""


async def send_all(scope: Scope, send: Send, response: Response, pieces: Iterable[bytes]) -> None:
    """Send status and headers of a response, and what it consists of."""
    try:
        async with asyncio.timeout(SECONDS):
            start: dict[str, Any] = {"type": "http.response.start", "status": response.status_code}
            await send(start | {"headers": response.raw_headers})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # A reader that is fast makes send() return at once: others have their turn here.
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        log.info("a reader was left that took more than %g s for an answer", SECONDS)
        scope["state"][CONNECTION].abort()
        await asyncio.sleep(0)  # until the server knows
