# SPDX-License-Identifier: Apache-2.0
"""Captures that the API began: each is read by a thread and sent as it comes.

The thread waits for the client when that is slow, and the kernel's ring for the thread; when
it is full, frames are lost, and counted. The datapath waits for nobody.

What a capture takes is given back when it ends, whether or not its client has taken the file:
the ring at once, the pieces on their way when they are taken or the client is taken for dead.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import asdict
from itertools import count
from typing import TYPE_CHECKING, Any

from fastapi.responses import StreamingResponse

from towpath.agent.errors import NotFoundError
from towpath.api import captures as documents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

    from towpath.datapath.recorder.capture import Progress, Recording
    from towpath.model.capture import Capture
    from towpath.model.kinds import Address

log = logging.getLogger(__name__)

STALL_SECONDS = 30.0
"""A client that takes nothing for so long is taken for dead."""
_WAITING = 2  # pieces of up to a MiB between the thread and the client
_REMEMBERED = 16


class Captures:
    """All captures of an agent. ``begin`` begins one, in any thread."""

    def __init__(self, begin: Callable[[Capture], Recording]) -> None:
        self._begin = begin
        self._numbers = count(1)
        self._running: dict[int, RunningCapture] = {}
        self._ended: deque[documents.CaptureEntry] = deque(maxlen=_REMEMBERED)

    async def start(self, capture: Capture) -> RunningCapture:
        """Begin a capture, whose `stream` has to be read. DatapathError; KernelError."""
        recording = await asyncio.to_thread(self._begin, capture)
        running = RunningCapture(next(self._numbers), recording, self._forget)
        self._running[running.number] = running
        running.start()
        log.info("capture %d begins", running.number)
        return running

    def _forget(self, running: RunningCapture) -> None:
        self._ended.append(running.entry())
        del self._running[running.number]
        log.info("capture %d has ended: %s", running.number, running.recording.ended)

    def entries(self) -> list[documents.CaptureEntry]:
        """Those that go on, and the last ones that have ended."""
        running = [each.entry() for each in list(self._running.values())]
        return sorted([*self._ended, *running], key=lambda entry: entry.id)

    def entry(self, number: int) -> documents.CaptureEntry:
        """One of them. NotFoundError."""
        found = next((each for each in self.entries() if each.id == number), None)
        if found is None:
            there = ", ".join(str(each.id) for each in self.entries()) or "none"
            raise NotFoundError(f"no capture {number}; there are: {there}")
        return found

    def stop(self, number: int) -> documents.CaptureEntry:
        """Have a capture end; its client gets the rest of the file. NotFoundError."""
        entry = self.entry(number)
        if running := self._running.get(number):
            running.recording.stop()
        return entry

    def found_down(self, service: str, backend: Address) -> None:
        """Have captures end that were to end when a backend is found down."""
        for running in list(self._running.values()):
            capture = running.recording.capture
            if capture.on_down and (not capture.services or service in capture.services):
                running.recording.stop(f"backend {backend} of service {service} was found down")

    def stop_all(self, why: str) -> None:
        """Have all captures end."""
        for running in list(self._running.values()):
            running.recording.stop(why)


class RunningCapture:
    """One capture, its thread, and what is on its way to the client."""

    def __init__(
        self, number: int, recording: Recording, forget: Callable[[RunningCapture], None]
    ) -> None:
        self.number = number
        self.recording = recording
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_WAITING)
        self._gone = False
        self._cut_off = False
        self._progress: Progress | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture {number}", daemon=True)

    def start(self) -> None:
        """Begin to read what is captured."""
        self._thread.start()

    def entry(self) -> documents.CaptureEntry:
        """What the API says of it."""
        recording = self.recording
        progress: dict[str, Any] = asdict(self._progress or recording.progress())
        return documents.CaptureEntry(
            id=self.number,
            capture=recording.capture,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(recording.started // 10**9)),
            ended=recording.ended if self._progress else "",
            frames=progress.pop("records"),
            **progress,
        )

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for piece in self.recording.chunks():
                if self._gone or not self._give(bytes(piece)):
                    self._cut_off = True
                    break
        except Exception:
            log.exception("capture %d", self.number)
            self.recording.stop("an error, which the agent's log has")
        finally:
            progress = self.recording.progress()
            self.recording.close()
            # Who is told that it has ended can count on that nothing is left of it.
            self._progress = progress
            self._call(self._finish)

    def _give(self, piece: bytes) -> bool:
        """Wait until the client has room for a piece; whether it had."""
        future = asyncio.run_coroutine_threadsafe(self._put(piece), self._loop)
        try:
            future.result(STALL_SECONDS)
        except TimeoutError:
            future.cancel()
            self.recording.stop(f"its reader took nothing for {STALL_SECONDS:g} seconds")
            return False
        except CancelledError:
            return False
        return True

    def _call(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop has ended, and with it the agent
            log.debug("capture %d outlived the server", self.number)

    # ---- the loop --------------------------------------------------------------------------------

    async def _put(self, piece: bytes) -> None:
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def _finish(self) -> None:
        """For the loop, when the thread has nothing more to give."""
        self._forget(self)
        if self._cut_off:
            self._drop()
        # Room is kept for it: nobody has to wait.
        self._pieces.put_nowait(None)

    def _drop(self) -> None:
        """Give up what nobody has taken."""
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def stream(self) -> AsyncIterator[bytes]:
        """Give the file in pieces until it ends."""
        while (piece := await self._pieces.get()) is not None:
            self._room.release()
            yield piece

    def leave(self) -> None:
        """The client has gone, or has all."""
        self._gone = True
        self.recording.stop("its reader has gone")
        self._drop()


class CaptureResponse(StreamingResponse):
    """A capture's file as an answer. When the client goes the capture ends."""

    def __init__(self, running: RunningCapture) -> None:
        super().__init__(
            running.stream(),
            media_type=documents.MEDIA_TYPE,
            headers={documents.HEADER: str(running.number)},
        )
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.leave()
