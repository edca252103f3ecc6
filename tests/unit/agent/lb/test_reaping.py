# SPDX-License-Identifier: Apache-2.0
"""Backends that left are counted for as long as the agent runs, at a small part of its time."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from towpath.agent.lb import part
from towpath.agent.lb.part import LoadBalancer
from towpath.agent.sources.file import FileSource
from towpath.agent.supervisor import Supervisor
from towpath.agent.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

WAITED = 0.2  # seconds


def test_they_are_counted_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was: a backend that nobody lets go is one that a drain waits for in vain."""
    monkeypatch.setattr(part, "REAP_SECONDS", 0.0)
    tries: list[int] = []

    async def run() -> None:
        enough = asyncio.Event()

        async def reap_once() -> float:
            tries.append(len(tries))
            if len(tries) < 3:
                raise OverflowError("nobody has foreseen this")
            enough.set()
            return 0.0

        reaping = SimpleNamespace(
            controller=SimpleNamespace(terminating={"one": None}), _reap_once=reap_once
        )
        supervisor = Supervisor(0.0)
        supervisor.start("reaping", lambda: LoadBalancer._reap(cast("LoadBalancer", reaping)))
        await asyncio.wait_for(enough.wait(), 60)
        await supervisor.stop()

    asyncio.run(run())
    assert len(tries) >= 3


def test_a_count_costs_what_it_computes() -> None:
    """Not what it waits: with a busy machine, or for packets that are in flight."""
    reaped: list[Mapping[Any, int]] = []

    def count(_: float) -> dict[Any, int]:
        threading.Event().wait(WAITED)
        return {"one": 1}

    controller = SimpleNamespace(
        terminating_flow_counter=lambda: ({}, SimpleNamespace(count=count)),
        config=SimpleNamespace(drain=SimpleNamespace(idle=1.0)),
        reap=lambda _, flows: reaped.append(flows),
    )
    with Writer() as writer:
        balancer = cast("LoadBalancer", SimpleNamespace(controller=controller, _writer=writer))
        cost = asyncio.run(LoadBalancer._reap_once(balancer))
    assert 0 <= cost < WAITED
    assert reaped == [{"one": 1}]


def test_a_file_that_takes_long_to_read_holds_up_nobody() -> None:
    """The loop answers and the writer changes things meanwhile."""
    reading, go = threading.Event(), threading.Event()
    offered: list[object] = []

    def read() -> str:
        reading.set()
        go.wait()
        return "config"

    async def offer(config: object) -> None:
        offered.append(config)

    async def run(writer: Writer) -> None:
        intake = SimpleNamespace(accept=lambda: None, offer=offer)
        source = FileSource(cast("Any", SimpleNamespace(read=read)), cast("Any", intake))
        reload = asyncio.create_task(source.read())
        await asyncio.to_thread(reading.wait)
        assert await writer.run(lambda: "changed") == "changed"
        assert not reload.done()
        go.set()
        await reload

    with Writer() as writer:
        asyncio.run(run(writer))
    assert offered == ["config"]
