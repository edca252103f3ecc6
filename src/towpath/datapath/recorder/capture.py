# SPDX-License-Identifier: Apache-2.0
"""One capture: reads its ring, and makes a pcapng file of what is in it."""

from __future__ import annotations

import platform
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from towpath import __version__
from towpath.closeable import Closeable
from towpath.core.recorder import pcapng
from towpath.datapath.recorder.clock import WallClock
from towpath.kernel.bpf.maps import possible_cpus
from towpath.model.capture import filter_text
from towpath.native import records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import ExitStack

    from towpath.core.recorder.names import Told
    from towpath.datapath.recorder.recorder import Recorder
    from towpath.kernel.bpf.fragments import Kind
    from towpath.kernel.bpf.object import BpfObject
    from towpath.kernel.bpf.ring import Ring
    from towpath.model.capture import Capture
    from towpath.native.records import Outcome

PROGRAM = "towpath_recorder"
_BUFFER = 1 << 20
_IDLE_SECONDS = 0.02
_DIRECTIONS = ("in", "out")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a capture has come."""

    seen: int
    """Packets that the program had."""
    matched: int
    """Those that the capture is for, before sampling."""
    packets: int
    """Those that were captured."""
    records: int
    """Frames of them: as they came in, as they were sent on, or both."""
    bytes: int
    """Bytes of these frames that were kept."""
    lost: int
    """Frames for which the ring had no room."""


class _Names(records.Names):
    """Describes devices as they are met, and remembers what became of packets."""

    def __init__(
        self, section: pcapng.Section, capture: Capture, describe: Callable[[Outcome], Told | None]
    ) -> None:
        self._section = section
        self._capture = capture
        self._describe = describe
        self._labels: dict[Outcome, str] = {}
        self.interfaces: dict[tuple[int, int], int] = {}

    def interface(self, ifindex: int, direction: int) -> int:
        key = ifindex, direction
        if key not in self.interfaces:
            name = f"{device_name(ifindex)}-{_DIRECTIONS[direction]}"
            meaning = "as packets came in", "as they were sent on"
            self.interfaces[key] = self._section.add(
                pcapng.Interface(
                    name, meaning[direction], self._capture.snaplen, filter_text(self._capture)
                )
            )
        return self.interfaces[key]

    def label(self, outcome: Outcome) -> str:
        if told := self._describe(outcome):
            self._labels[outcome] = told.text
            self._section.name(told.names)
        return self._labels.get(outcome, "")


class Recording(Closeable):
    """A capture that goes on. `chunks` gives the file; `stop` may be called by any thread.

    A context manager, which closes.
    """

    def __init__(
        self,
        *,
        capture: Capture,
        slot: int,
        ring: Ring,
        loaded: Mapping[Kind, BpfObject],
        recorder: Recorder,
        describe: Callable[[Outcome], Told | None],
        undo: ExitStack,
        dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.capture = capture
        self.slot = slot
        self.objects = loaded
        """By the kind of their programs; they share rules and rings."""
        self.object = next(iter(loaded.values()))
        self.program = self.object.programs[PROGRAM]
        self.programs = {kind: each.programs[PROGRAM] for kind, each in loaded.items()}
        self.clock = WallClock()
        self.started = self.clock.look()
        self.ended = ""
        """Why it has ended, in words; empty until then."""
        self._ring = ring
        self._recorder = recorder
        self._undo = undo
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._closed = False
        self._lost = 0
        self._drops = _Rate(dropped)
        self._version = recorder.version
        self._section = pcapng.Section(
            pcapng.section_header(
                system=f"{platform.system()} {platform.release()}",
                application=f"towpath {__version__}",
                comment=filter_text(capture),
            )
        )
        self._names = _Names(self._section, capture, describe)
        self._reader = records.RecordReader(
            ring.consumer,
            ring.producer,
            ring.data,
            clock=self.clock.offset,
            cpus=possible_cpus(),
            packets=capture.packets or records.UNLIMITED,
            size=capture.bytes or records.UNLIMITED,
        )
        undo.callback(self._reader.close)

    def chunks(self) -> Iterator[memoryview]:
        """Give the file, piece by piece, until it ends; then `ended` says why.

        A piece is valid until the next one is asked for. Each is of whole blocks.
        """
        yield memoryview(self._section.pending())
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while self.capture.keep and not self._is_over():
            self._follow_clock()
            self._reader.trim(self.capture.keep)
            self._stop.wait(_IDLE_SECONDS)
        while not self._is_over():
            size = self._read(buffer)
            if size:
                yield view[:size]
            if size < _BUFFER // 2:
                self._stop.wait(_IDLE_SECONDS)
        self._recorder.stop(self)
        while size := self._read(buffer):
            yield view[:size]
        yield memoryview(self._statistics())

    def __iter__(self) -> Iterator[bytes]:
        """Give copies of the `chunks`, which may be kept."""
        return map(bytes, self.chunks())

    def save(self, path: Path | str) -> int:
        """Write the file until it ends; returns its bytes."""
        with Path(path).open("wb") as file:
            return sum(map(file.write, self.chunks()))

    def _read(self, buffer: bytearray) -> int:
        if self._version != self._recorder.version:
            self._version = self._recorder.version
            self._reader.forget_labels()
        self._follow_clock()
        size = self._reader.read(buffer, self._section, self._names)
        # What has been read was there before that, what is read next comes after it.
        self._tell_losses()
        return size

    def _follow_clock(self) -> None:
        self.clock.look()
        for since, offset in self.clock.changes():
            self._reader.change_clock(since, offset)

    def _tell_losses(self) -> None:
        lost = sum(self._recorder.losses(self.slot).values())
        if lost != self._lost:
            self._reader.lose(lost - self._lost)
            self._lost = lost

    def _is_over(self) -> bool:
        if self._reader.ended:
            limit = self.capture.packets and self._reader.packets >= self.capture.packets
            self.stop(
                "so many packets were wished for" if limit else "so many bytes were wished for"
            )
        elif self.capture.seconds and time.monotonic() >= self._begun + self.capture.seconds:
            self.stop("so much time was wished for")
        elif self.capture.on_drops and (drops := self._drops.look()) >= self.capture.on_drops:
            self.stop(f"{drops} packets were dropped within a second")
        return self._stop.is_set()

    def _statistics(self) -> bytes:
        lost = self._recorder.losses(self.slot)
        now = self.clock.look()
        # A device of which everything was lost is described only now.
        numbers = {self._names.interface(*key): key for key in (*self._names.interfaces, *lost)}
        blocks = [self._section.pending()]
        for number, key in sorted(numbers.items()):
            dropped = lost.get(key, 0)
            received = self._reader.count(number) + dropped
            blocks.append(
                pcapng.statistics_block(
                    pcapng.Statistics(number, self.started, now, received, dropped)
                )
            )
        return b"".join(blocks)

    def progress(self) -> Progress:
        """Return how far it has come."""
        seen, matched = self._recorder.counts(self.slot)
        return Progress(
            seen=seen,
            matched=matched,
            packets=self._reader.packets,
            records=self._reader.records,
            bytes=self._reader.bytes,
            lost=sum(self._recorder.losses(self.slot).values()),
        )

    def stop(self, why: str = "it was stopped") -> None:
        """Have `chunks` come to its end."""
        self.ended = self.ended or why
        self._stop.set()

    def close(self) -> None:
        """Take it out of the kernel, at its end or before. Twice is once."""
        if not self._closed:
            self._closed = True
            self.stop()
            self._recorder.stop(self)
            self._undo.close()

    def give_up(self) -> None:
        """Let go of what it has, of a capture that never began."""
        self._closed = True
        self._undo.close()


class _Rate:
    """How much a number grows in a second, looked at once in each."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._before = number()
        self._due = time.monotonic() + 1

    def look(self) -> int:
        """Return what it has grown by in the second that has ended; 0 before that."""
        if (now := time.monotonic()) < self._due:
            return 0
        self._due = now + 1
        before, self._before = self._before, self._number()
        return self._before - before


def device_name(ifindex: int) -> str:
    """Return a device's name, or its number once it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"if{ifindex}"
