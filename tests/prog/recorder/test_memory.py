# SPDX-License-Identifier: Apache-2.0
"""What a capture takes is given back when it ends, whatever its reader does."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import flows
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.told import tellable
from tests.prog.recorder.harness import Recorded, serve_all

from towpath.agent.recorder import captures
from towpath.agent.recorder.captures import Captures
from towpath.lab.waiting import wait_until
from towpath.model.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.harness import Rig

    from towpath.datapath.recorder.capture import Recording

MANY = 3
WAITING = 2  # pieces
LARGE = 1 << 20


@pytest.fixture(autouse=True)
def served(rig: Rig) -> Iterator[None]:
    """Somebody to send to."""
    rig.serve()
    serve_all(rig, 4, *NEAR[4])
    yield
    rig.serve()


def rings() -> int:
    """Bytes of rings that this process has mapped: one is an array of BPF's, and large."""
    gc.collect()  # what tests before this one have left
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split()
        first, last = (int(each, 16) for each in span.split("-"))
        if "bpf-map" in name and last - first > LARGE:
            found += last - first
    return found


def wait_for_the_end(running: Captures) -> None:
    """Return when all captures have ended."""
    wait_until(
        lambda: all(each.ended for each in running.entries()), seconds=120, what="captures to end"
    )


def started(rig: Rig, capture: Capture) -> Recording:
    """A capture with a ring as an agent's, whose program can be run by itself."""
    with tellable():
        return rig.balancer.record(capture)


def test_a_capture_that_is_closed_has_no_ring(rig: Rig) -> None:
    """Also while it is still referred to, and its file half read."""
    before = rings()
    recording = started(rig, Capture())
    chunks = recording.chunks()
    assert next(chunks)
    assert rings() > before
    recording.close()
    assert rings() == before
    assert recording.progress().packets == 0


def test_a_reader_that_stalls_keeps_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its capture has ended: no ring, no piece that waits for it, and no task."""
    monkeypatch.setattr(captures, "STALL_SECONDS", 3.0)
    before = rings()

    async def stall() -> None:
        running = Captures(lambda capture: started(rig, capture))
        made = [await running.start(Capture()) for _ in range(MANY)]
        streams = [each.stream() for each in made]
        for each in streams:
            assert await anext(each)
        assert rings() > before
        recorded, sent = Recorded(rig, made[0].recording), flows(10_000)
        # So many that there are more pieces than wait for a reader.
        while not all(each._pieces.qsize() == WAITING for each in made):
            recorded.run(next(sent), IN)
            await asyncio.sleep(0.03)
        recorded.run(next(sent), IN)
        await asyncio.to_thread(wait_for_the_end, running)
        assert rings() == before
        for each in streams:
            assert [piece async for piece in each] == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        said = {each.ended for each in running.entries()}
        assert said == {"its reader took nothing for 3 seconds"}

    asyncio.run(stall())
