# SPDX-License-Identifier: Apache-2.0
"""Metrics for everyone who asks: rendered once for all who ask meanwhile.

However many ask, and however slowly they read, there are at most two renderings at a time: who
comes while both are still being read gets the newer one.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from weakref import ref

from fastapi.responses import Response

from towpath.agent.http.exposition import CONTENT_TYPE, Rendering
from towpath.agent.http.sending import send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.core import Metric
    from starlette.types import Receive, Scope, Send

MAX_AT_ONCE = 2


class Scrapes:
    """What ``read`` gives, as it is at each scrape. For the event loop; ``read`` runs on a thread.

    Nothing is kept once it has been read by all who asked.
    """

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read
        # One thread, always the same: its memory is then used again and again.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._making: asyncio.Task[Rendering] | None = None
        self._there: list[ref[Rendering]] = []

    async def rendering(self) -> Rendering:
        """What is being rendered, or is to be; what there is while two are still being read."""
        if self._making is None:
            there = [each for weak in self._there if (each := weak())]
            if len(there) >= MAX_AT_ONCE:
                return there[-1]
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(_seen)
        return await asyncio.shield(self._making)

    async def _make(self) -> Rendering:
        # Noted before anyone can ask again: a callback of the future might come later than who
        # waits for it (Python 3.14, where a thread is quick).
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._thread, self._render)
        finally:
            self._making = None
        self._there = [each for each in self._there if each()]
        self._there.append(ref(made))
        return made

    def _render(self) -> Rendering:
        return Rendering(self._read())


def _seen(making: asyncio.Task[Rendering]) -> None:
    """Say nothing of an error if all who asked have gone."""
    if not making.cancelled():
        making.exception()


class ScrapeResponse(Response):
    """The metrics, compressed if ``headers`` of the request allow it."""

    def __init__(self, scrapes: Scrapes, headers: Mapping[str, str]) -> None:
        self._scrapes = scrapes
        self._gzip = _accepts_gzip(headers.get("accept-encoding", ""))
        super().__init__(headers={"content-type": CONTENT_TYPE, "vary": "Accept-Encoding"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, piece by piece."""
        del receive
        rendering = await self._scrapes.rendering()
        size = sum(map(len, rendering.packed)) if self._gzip else rendering.size
        self.headers["content-length"] = str(size)
        if self._gzip:
            self.headers["content-encoding"] = "gzip"
        pieces = rendering.packed if self._gzip else rendering.text()
        await send_all(scope, send, self, pieces)


def _accepts_gzip(accepted: str) -> bool:
    """Whether a header Accept-Encoding does (RFC 9110, 12.5.3)."""
    return any(
        coding.strip().lower() == "gzip" and not _is_zero(weight)
        for coding, _, weight in (each.partition(";") for each in accepted.split(","))
    )


def _is_zero(weight: str) -> bool:
    return weight.replace(" ", "").lower().rstrip("0.") in {"q=", "q"}
