# SPDX-License-Identifier: Apache-2.0
"""Documents are encoded piece by piece, and few large ones are there at one time."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.test_codec import DOCUMENTS

from towpath.agent.http.response import READERS, Whole, encoded
from towpath.api.codec import plain

# What a document of thousands of services has in one piece at most, in characters.
SMALL_PIECE = 1000


@pytest.mark.parametrize(
    "document",
    [
        *DOCUMENTS,
        DOCUMENTS,
        {"a": [], "b": {}, "c": [[], {"d": ()}], "\u202e": "\x1b[31m"},
        [],
        {},
        1,
    ],
    ids=lambda each: type(each).__name__,
)
def test_pieces_are_the_whole(document: object) -> None:
    """As JSON has it."""
    pieces = list(encoded(document))
    assert json.loads("".join(pieces)) == json.loads(json.dumps(plain(document)))
    assert "".join(pieces).isascii()


def test_no_piece_is_large() -> None:
    """However many there are: between pieces other threads run."""
    many = [document for document in DOCUMENTS for _ in range(1000)]
    assert max(map(len, encoded({"services": many}))) < SMALL_PIECE


class Answers:
    """Answers that are asked for at once, of which each is read when it may be."""

    def __init__(self) -> None:
        self.made = 0
        self.begun = 0
        self.read = asyncio.Event()
        self.scope: Any = {"app": SimpleNamespace(state=SimpleNamespace()), "state": {}}

    def make(self) -> object:
        """A document."""
        self.made += 1
        return [self.made]

    async def ask(self, *, waits: bool) -> None:
        """Ask for one."""
        await Whole(self.make, waits=waits)(self.scope, None, self._send)  # type: ignore[arg-type]

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.begun += 1
            await self.read.wait()


@pytest.mark.parametrize(("waits", "at_once"), [(True, READERS), (False, 10)])
def test_so_many_are_there_at_one_time(waits: bool, at_once: int) -> None:  # noqa: FBT001
    """Until they have been read; those that are small don't wait for these."""

    async def ask() -> None:
        answers = Answers()
        tasks = [asyncio.create_task(answers.ask(waits=waits)) for _ in range(10)]
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.01)
                if answers.begun == at_once:
                    break
        assert answers.made == at_once
        answers.read.set()
        await asyncio.gather(*tasks)
        assert answers.made == 10

    asyncio.run(ask())
