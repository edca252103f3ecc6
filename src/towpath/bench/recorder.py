# SPDX-License-Identifier: Apache-2.0
"""What the recorder costs a packet, and how many packets a second get to a file.

The cost is timed as the load balancer's own scenarios are, by the wrapper: without a capture, and
with one of each kind. Throughput is that of whole packets, both sides of each: the kernel makes
them in bursts at the wished-for rate while a thread reads the ring and writes a file.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from towpath.bench.cpu import on_one_cpu
from towpath.bench.frames import IPV4, SOURCE_WORD, frame
from towpath.bench.loadbalancer import Rig, rig
from towpath.bench.report import Timing
from towpath.bench.scenarios import SCENARIOS
from towpath.bench.wrapper import Action, Stimulus
from towpath.datapath.recorder.file import CaptureFile
from towpath.model.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.datapath.recorder.capture import Progress, Recording
    from towpath.kernel.bpf.programs import Program

RUNS = 15
SIZES = (64, 1494)
"""Bytes of a frame; the larger one leaves as 1514, which is as much as a frame may have."""
_BATCHES, _UNTIMED = 400, 32  # what matches has to find room in the ring
_KNOWN = "tcp-v4-lru-hit"
_BURSTS = 20  # a second: to begin a run of many packets takes the kernel some 20 ms
_ELSEWHERE = "0.0.0.0/0 0 203.0.113.99/32 {} tcp"
_MATCHING = "0.0.0.0/0 0 203.0.113.10/32 80 tcp"
CASES = {
    "no rule, expression that doesn't match": Capture(expression="udp port 9"),
    "1 rule, no match": Capture((_ELSEWHERE.format(81),)),
    "1,000 rules, no match": Capture(tuple(_ELSEWHERE.format(n) for n in range(1000, 2000))),
    "1 rule, match": Capture((_MATCHING,), direction="both"),
    "1 rule, match, only what comes in": Capture((_MATCHING,), direction="in"),
    "1 rule, match, 1 of 100": Capture((_MATCHING,), direction="both", sample=100),
}
WRITTEN = (
    Capture((_MATCHING,), direction="both"),
    Capture((_MATCHING,), direction="in"),
    Capture((_MATCHING,), direction="in", keep=1 << 26),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds per packet with a capture and, in turn with it, without; floor included."""

    name: str
    on: Timing
    off: Timing
    more_ns: float
    """Median of the differences, each of two runs one after the other."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Packets that were offered in so many seconds, and what got to the file."""

    size: int
    """Bytes of a frame."""
    direction: str
    keep: int
    """Bytes of the last frames that are kept, and written at the end; 0: all are written."""
    seconds: float
    offered: int
    matched: int
    packets: int
    frames: int
    lost: int
    file_bytes: int
    reader_cpu: float
    """Seconds of CPU that reading and writing took."""


@dataclass(frozen=True, slots=True)
class RecorderReport:
    """``costs``: by size of the frames."""

    kernel: str
    costs: dict[int, tuple[Cost, ...]]
    throughput: tuple[Throughput, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench recorder --json`` prints it."""
        return {
            "kernel": self.kernel,
            "costs": {size: [asdict(each) for each in these] for size, these in self.costs.items()},
            "throughput": [asdict(each) for each in self.throughput],
        }


def measure(
    *, runs: int = RUNS, rates: dict[int, int] | None = None, seconds: float = 5.0, path: Path
) -> RecorderReport:
    """Time every case, then write captures to ``path``, which is removed.

    ``rates``: packets a second by size of the frames. BenchError; KernelError.
    """
    with rig() as bench:
        with on_one_cpu():
            costs = {size: _costs(bench, size, runs) for size in SIZES}
        found = [
            _throughput(bench, size, capture, rate, seconds, path)
            for size, rate in (rates or {}).items()
            for capture in WRITTEN
        ]
    return RecorderReport(os.uname().release, costs, tuple(found))


def _stimulus(bench: Rig, size: int) -> Stimulus:
    """Packets of one flow that is known, in frames of that size, without a checksum behind."""
    flow = next(each.flow for each in SCENARIOS if each.name == _KNOWN)
    sent = frame(flow, payload=max(size - 14 - 20 - 20, 0))
    return Stimulus(sent, SOURCE_WORD[IPV4], 0, bench.ifindex)


def _costs(bench: Rig, size: int, runs: int) -> tuple[Cost, ...]:
    """Each case, run for run in turn with the program that doesn't record."""
    stimulus = _stimulus(bench, size)
    made = []
    for name, capture in CASES.items():
        on, off = [], []
        with _program(bench, capture) as program:
            for _ in range(runs):
                off.append(_time(bench, bench.program, stimulus))
                on.append(_time(bench, program, stimulus))
        more = statistics.median(b - a for a, b in zip(off, on, strict=True))
        made.append(Cost(name, Timing.of(name, on), Timing.of("off", off), round(more, 1)))
    return tuple(made)


def _time(bench: Rig, program: Program, stimulus: Stimulus) -> float:
    return bench.wrapper.time(program, stimulus, Action.TX, batches=_BATCHES, untimed=_UNTIMED)


@contextmanager
def _program(bench: Rig, capture: Capture) -> Iterator[Program]:
    """The program that is attached during a capture, whose file nobody keeps."""
    with bench.record(capture) as recording:
        reading = threading.Thread(target=_read, args=(recording, None))
        reading.start()
        try:
            yield recording.program
        finally:
            recording.stop()
            reading.join()


def _read(recording: Recording, path: Path | None) -> None:
    if path is None:
        for _ in recording.chunks():
            pass
        return
    with CaptureFile(path) as file:
        for piece in recording.chunks():
            file.write(piece)


class _Reader(threading.Thread):
    """Writes a capture to a file, and knows how much CPU that took."""

    def __init__(self, recording: Recording, path: Path) -> None:
        super().__init__()
        self.cpu = 0.0
        self._recording = recording
        self._path = path

    def run(self) -> None:
        """Write until it ends."""
        _read(self._recording, self._path)
        self.cpu = time.thread_time()


def _throughput(
    bench: Rig, size: int, capture: Capture, rate: int, seconds: float, path: Path
) -> Throughput:
    stimulus = _stimulus(bench, size)
    burst = max(rate // _BURSTS // bench.wrapper.batch, 1)
    offered = 0
    with bench.record(capture) as recording:
        reader = _Reader(recording, path)
        reader.start()
        began = time.monotonic()
        try:
            while (now := time.monotonic() - began) < seconds:
                bench.wrapper.time(recording.program, stimulus, Action.TX, batches=burst)
                offered += burst * bench.wrapper.batch
                time.sleep(max(offered / rate - (time.monotonic() - began), 0))
        finally:
            recording.stop()
            reader.join()
        progress: Progress = recording.progress()
    written = path.stat().st_size
    path.unlink()
    return Throughput(
        size,
        capture.direction,
        capture.keep,
        now,
        offered,
        progress.matched,
        progress.packets,
        progress.records,
        progress.lost,
        written,
        reader.cpu,
    )
