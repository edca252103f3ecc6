# SPDX-License-Identifier: Apache-2.0
"""However many ask for the metrics, and however slowly they read."""

from __future__ import annotations

import asyncio
import gzip
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.core import GaugeMetricFamily

from towpath.agent.http.exposition import Ready
from towpath.agent.http.scrapes import MAX_AT_ONCE, ScrapeResponse, Scrapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric


class Source:
    """Metrics that may be read when ``go`` is set, and how often they were read."""

    def __init__(self, lines: str = "") -> None:
        self.reads = 0
        self.go = threading.Event()
        self.error: Exception | None = None
        self._lines = lines

    def read(self) -> Iterator[Metric]:
        """Count, and say how often."""
        assert self.go.wait(60)
        self.reads += 1
        if self.error:
            raise self.error
        yield GaugeMetricFamily("reads", "So many.", value=self.reads)
        yield Ready("more", "More.", "gauge", (self._lines,))


def test_one_rendering_is_for_all_who_ask_meanwhile() -> None:
    """Who comes later gets another, and of the first one nothing is kept."""
    source = Source()
    scrapes = Scrapes(source.read)

    async def ask() -> None:
        tasks = [asyncio.create_task(scrapes.rendering()) for _ in range(16)]
        await asyncio.sleep(0)
        source.go.set()
        first, *others = [await task for task in tasks]
        assert all(each is first for each in others)
        assert source.reads == 1
        assert await scrapes.rendering() is not first
        assert source.reads == 2

    asyncio.run(ask())


def test_there_are_never_more_than_two() -> None:
    """Who comes while two are still being read gets the newer one."""
    source = Source()
    source.go.set()
    scrapes = Scrapes(source.read)

    async def ask() -> None:
        read_by_slow_ones = [await scrapes.rendering() for _ in range(MAX_AT_ONCE)]
        for _ in range(5):
            assert await scrapes.rendering() is read_by_slow_ones[-1]
        assert source.reads == MAX_AT_ONCE
        read_by_slow_ones.pop(0)
        await scrapes.rendering()
        assert source.reads == MAX_AT_ONCE + 1

    asyncio.run(ask())


def test_one_that_fails_is_forgotten() -> None:
    """All who waited are told, whoever left meanwhile; the next one has a rendering of its own."""
    source = Source()
    scrapes = Scrapes(source.read)
    source.error = OSError("out of order")

    async def ask() -> None:
        tasks = [asyncio.create_task(scrapes.rendering()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        source.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found] == [asyncio.CancelledError, OSError, OSError]
        source.error = None
        assert (await scrapes.rendering()).size

    asyncio.run(ask())


def sent(source: Source, headers: dict[str, str]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Headers and pieces of an answer."""
    source.go.set()
    response = ScrapeResponse(Scrapes(source.read), headers)
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(response({}, None, send))  # type: ignore[arg-type]
    start, *rest = messages
    assert [each["more_body"] for each in rest] == [True] * (len(rest) - 1) + [False]
    return dict(start["headers"]), [each["body"] for each in rest]


MANY = "".join(f"more {n}.0\n" for n in range(100_000))


@pytest.mark.parametrize("lines", ["", MANY])
def test_it_is_sent_in_small_pieces(lines: str) -> None:
    """What a slow reader has not taken yet is a piece, not the whole."""
    headers, pieces = sent(Source(lines), {"accept-encoding": "identity"})
    body = b"".join(pieces)
    assert body.endswith(b"# TYPE more gauge\n" + lines.encode())
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    assert b"content-encoding" not in headers
    assert max(map(len, pieces)) <= 1 << 16


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0, br", False), ("gzip;q=0.0", False)],
)
def test_it_is_compressed_if_that_is_asked_for(accepted: str, compressed: bool) -> None:  # noqa: FBT001
    """As Prometheus does."""
    headers, pieces = sent(Source(MANY), {"accept-encoding": accepted})
    body = b"".join(pieces)
    assert headers[b"content-length"] == b"%d" % len(body)
    assert (headers.get(b"content-encoding") == b"gzip") is compressed
    text = gzip.decompress(body) if compressed else body
    assert text.endswith(MANY.encode())
