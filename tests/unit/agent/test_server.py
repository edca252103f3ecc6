# SPDX-License-Identifier: Apache-2.0
"""What the agent does beside answering goes on, and costs a small part of the time."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from towpath.agent import server
from towpath.agent.host import Host
from towpath.agent.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping

WAITED = 0.2  # seconds


def host(**fields: Any) -> Host:
    """As much of a host as is asked for."""
    return cast("Host", SimpleNamespace(**fields))


def test_backends_that_left_are_counted_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it was: a backend that nobody lets go is one that a drain waits for in vain."""
    monkeypatch.setattr(server, "REAP_SECONDS", 0.0)
    monkeypatch.setattr(server, "AGAIN_SECONDS", 0.0)
    tries: list[int] = []

    async def run() -> None:
        enough = asyncio.Event()

        async def reap() -> float:
            tries.append(len(tries))
            if len(tries) < 3:
                raise OverflowError("nobody has foreseen this")
            enough.set()
            return 0.0

        reaping = host(controller=SimpleNamespace(leaving={"one": None}), reap=reap)
        task = asyncio.create_task(server._lasting(lambda: server._reap(reaping)))
        await asyncio.wait_for(enough.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert len([each for each in caplog.records if each.exc_info]) == 2


def test_work_that_is_done_is_not_begun_again() -> None:
    """Some has nothing to do."""
    begun = []

    async def work() -> None:
        begun.append(1)

    asyncio.run(server._lasting(work))
    assert begun == [1]


def test_a_count_costs_what_it_computes() -> None:
    """Not what it waits: with a busy machine, or for packets that are in flight."""
    reaped: list[Mapping[Any, int]] = []

    def count(_: float) -> dict[Any, int]:
        threading.Event().wait(WAITED)
        return {"one": 1}

    controller = SimpleNamespace(
        leaving={},
        datapath=SimpleNamespace(census=lambda _: SimpleNamespace(count=count)),
        config=SimpleNamespace(drain=SimpleNamespace(idle=1.0)),
        reap=lambda _, flows: reaped.append(flows),
    )
    with Writer() as writer:
        cost = asyncio.run(Host.reap(host(controller=controller, writer=writer)))
    assert 0 <= cost < WAITED
    assert reaped == [{"one": 1}]


def test_a_file_that_takes_long_to_read_holds_up_nobody() -> None:
    """The loop answers and the writer changes things meanwhile."""
    reading, go = threading.Event(), threading.Event()
    reloaded: list[object] = []

    def read() -> str:
        reading.set()
        go.wait()
        return "config"

    file = SimpleNamespace(read=read, accept=lambda: None)
    controller = SimpleNamespace(reload=reloaded.append)

    async def run() -> None:
        reload = asyncio.create_task(
            Host.reload(host(file=file, controller=controller, writer=writer))
        )
        await asyncio.to_thread(reading.wait)
        assert await writer.run(lambda: "changed") == "changed"
        assert not reload.done()
        go.set()
        await reload

    with Writer() as writer:
        asyncio.run(run())
    assert reloaded == ["config"]
