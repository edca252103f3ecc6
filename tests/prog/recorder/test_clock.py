# SPDX-License-Identifier: Apache-2.0
"""The wall clock is set while packets are captured: each has the time that it had when it came."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import flows
from tests.prog.lb.network import NEAR
from tests.prog.recorder.harness import recorded, serve_all
from tests.read_pcapng import read

from towpath.datapath.recorder import clock
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.prog.lb.harness import Rig
    from tests.read_pcapng import Capture

HOUR = 3600 * 10**9
STEP = 700_000


class Clocks:
    """The machine's, of which the one is wrong by `ahead` nanoseconds."""

    def __init__(self) -> None:
        self.ahead = 0
        self._real = clock.read_clocks

    def read(self) -> tuple[int, int]:
        """As `read_clocks`."""
        monotonic, offset = self._real()
        return monotonic, offset + self.ahead

    def now(self) -> int:
        """What it shows."""
        return time.time_ns() + self.ahead


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """In the place of the real ones, which aren't this test's to set."""
    made = Clocks()
    monkeypatch.setattr(clock, "read_clocks", made.read)
    return made


@pytest.fixture(autouse=True)
def served(rig: Rig) -> Iterator[None]:
    """Somebody to send to."""
    rig.serve()
    serve_all(rig, 4, *NEAR[4])
    yield
    rig.serve()


class Timed:
    """Frames that are run while the clocks show what they show."""

    def __init__(self, rig: Rig, clocks: Clocks) -> None:
        self._rig = rig
        self._clocks = clocks
        self.spans: list[tuple[int, int]] = []

    def run(self, frames: Iterable[bytes]) -> None:
        """One after the other."""
        for each in frames:
            began = self._clocks.now()
            self._rig.check(each)
            self.spans.append((began, self._clocks.now()))

    def check(self, found: Capture, slewed: int = 0) -> None:
        """Assert that each packet has the time that it was when it was run.

        ``slewed``: by how much a clock may have moved since somebody has looked at it.
        """
        slack = clock.STEP_NANOSECONDS + slewed
        assert len(found.packets) == len(self.spans)
        for packet, (began, ended) in zip(found.packets, self.spans, strict=True):
            assert began - slack <= packet.time <= ended + slack
        times = [each.time for each in found.packets]
        for interface in found.interfaces:
            assert interface.start <= times[0] + slack
            assert times[-1] <= interface.end + slack
            assert interface.end <= self._clocks.now() + slack


@pytest.mark.parametrize("step", [HOUR, -HOUR, 30_000_000])
def test_packets_and_statistics_follow_a_step(rig: Rig, clocks: Clocks, step: int) -> None:
    """Forwards or back, once or twice before anybody reads; what came before keeps its time."""
    timed = Timed(rig, clocks)
    with recorded(rig, direction="in") as capture:
        chunks = capture.recording.chunks()
        found = bytes(next(chunks))
        timed.run(flows(5))
        for number in range(2):
            clocks.ahead += step
            capture.recording.clock.look()
            timed.run(flows(5, start=1000 * (2 + number)))
        capture.recording.stop()
        timed.check(read(found + b"".join(map(bytes, chunks))))


def test_clocks_that_are_slewed_are_followed(rig: Rig, clocks: Clocks) -> None:
    """However slowly they part; what is less than a millisecond changes no order."""
    timed = Timed(rig, clocks)
    with recorded(rig, direction="in") as capture:
        chunks = capture.recording.chunks()
        found = bytes(next(chunks))
        for each in flows(40):
            clocks.ahead += STEP
            timed.run([each])
            found += bytes(next(chunks))
        capture.recording.stop()
        made = read(found + b"".join(map(bytes, chunks)))
    timed.check(made, slewed=STEP)
    times = [each.time for each in made.packets]
    assert times == sorted(times)


def test_a_look_that_fails_ends_no_capture(
    rig: Rig, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that keeps captures alive goes on, and says it once."""
    failures = []

    def fails() -> tuple[int, int]:
        failures.append(1)
        raise OSError("no clock")

    with recorded(rig, direction="in") as capture:
        with monkeypatch.context() as broken:
            broken.setattr(clock, "read_clocks", fails)
            wait_until(lambda: len(failures) > 2, seconds=60, what="the next beats")
        clocks.ahead += HOUR
        before = capture.recording.clock.offset
        wait_until(lambda: capture.recording.clock.offset > before, seconds=60, what="a look")
    assert caplog.text.count("captures: tried again") == 1
