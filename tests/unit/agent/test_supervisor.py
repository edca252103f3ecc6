# SPDX-License-Identifier: Apache-2.0
"""Background tasks that fail are begun again, and told."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from towpath.agent.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

PAUSE = 0.02


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come about."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(PAUSE / 4)


def test_a_task_that_fails_is_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged once however often it comes, and told until it stays away."""
    caplog.set_level(logging.INFO)
    begun = []

    async def work() -> None:
        begun.append(1)
        if len(begun) < 4:
            raise OSError("out of memory")
        await asyncio.sleep(3600)

    async def life() -> None:
        supervisor = Supervisor(PAUSE)
        supervisor.start("ages", work)
        await until(lambda: len(begun) == 2)
        assert supervisor.troubles == ("ages: out of memory",)
        await until(lambda: supervisor.troubles == ())
        await supervisor.stop()

    asyncio.run(life())
    assert len(begun) == 4
    assert [record.message for record in caplog.records] == [
        "ages: tried again every 0.02 s",
        "ages: well again",
    ]
    assert "out of memory" in caplog.text


def test_another_error_is_told_instead() -> None:
    """By its class where it says nothing."""
    errors = [ValueError("one"), KeyError()]

    async def work() -> None:
        if errors:
            raise errors.pop(0)
        await asyncio.sleep(3600)

    async def life() -> None:
        supervisor = Supervisor(PAUSE)
        supervisor.start("file", work)
        await until(lambda: supervisor.troubles == ("file: one",))
        await until(lambda: supervisor.troubles == ("file: KeyError",))
        await supervisor.stop()

    asyncio.run(life())


def test_a_task_whose_errand_is_cancelled_is_begun_again() -> None:
    """Nobody has cancelled the task itself: what it waited for was."""
    begun = []

    async def work() -> None:
        begun.append(1)
        if len(begun) == 1:
            errand = asyncio.get_running_loop().create_future()
            errand.cancel()
            await errand
        await asyncio.sleep(3600)

    async def life() -> None:
        supervisor = Supervisor(PAUSE)
        supervisor.start("errands", work)
        await until(lambda: supervisor.troubles == ("errands: CancelledError",))
        await until(lambda: len(begun) == 2)
        await supervisor.stop()

    asyncio.run(life())


def test_one_task_is_no_other_s_concern() -> None:
    """One fails, one ends, one goes on until all are stopped."""
    ended = []

    async def fails() -> None:
        raise OSError("no")

    async def ends() -> None:
        ended.append("ends")

    async def goes_on() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("goes on")

    async def life() -> None:
        supervisor = Supervisor(PAUSE)
        supervisor.start("fails", fails)
        supervisor.start("ends", ends)
        supervisor.start("goes on", goes_on)
        await until(lambda: bool(supervisor.troubles))
        assert ended == ["ends"]
        await supervisor.stop()
        assert ended == ["ends", "goes on"]

    asyncio.run(life())
