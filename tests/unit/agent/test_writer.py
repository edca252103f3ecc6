# SPDX-License-Identifier: Apache-2.0
"""One change after another."""

from __future__ import annotations

import asyncio
import threading

import pytest

from towpath.agent.writer import Writer


def test_calls_run_one_at_a_time_in_their_order() -> None:
    """However many ask at once."""
    done: list[int] = []
    threads: set[str] = set()

    def change(number: int) -> int:
        done.append(number)
        threads.add(threading.current_thread().name)
        return number

    async def ask() -> list[int]:
        return await asyncio.gather(*(writer.run(change, number) for number in range(100)))

    with Writer() as writer:
        assert asyncio.run(ask()) == list(range(100))
        assert writer.call(change, 100) == 100
    assert done == list(range(101))
    assert len(threads) == 1


def test_an_error_comes_back_to_who_asked() -> None:
    """And the next call runs."""

    def fail() -> None:
        raise ValueError("no")

    with Writer() as writer:
        with pytest.raises(ValueError, match="no"):
            asyncio.run(writer.run(fail))
        assert writer.call(int, "7") == 7


def test_a_caller_that_goes_away_does_not_cut_a_change_short() -> None:
    """Half a change is worse than one that nobody waits for."""
    started, go, done = threading.Event(), threading.Event(), threading.Event()

    def change() -> None:
        started.set()
        go.wait(10)
        done.set()

    async def ask_and_leave() -> None:
        task = asyncio.create_task(writer.run(change))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    with Writer() as writer:
        asyncio.run(ask_and_leave())
    assert done.is_set()
