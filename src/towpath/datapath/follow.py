# SPDX-License-Identifier: Apache-2.0
"""What is kept in step with a node, by a thread of its own."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from towpath.closeable import Closeable
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


def told(what: str, error: Exception, before: str | None) -> str:
    """Return what has failed, as trouble, and log it if it isn't what has failed before.

    What nobody has expected is logged with where it happened.
    """
    trouble = str(error) or type(error).__name__
    if trouble != before:
        expected = isinstance(error, KernelError | OSError)
        where = None if expected else error
        log.warning("%s: %s; tried again", what, trouble, exc_info=where)
    return trouble


class Followed(Protocol):
    """What can be kept in step. All but ``detach`` and ``close``: KernelError, OSError."""

    @property
    def troubles(self) -> tuple[str, ...]:
        """What isn't as it should be."""
        ...

    def filenos(self) -> Sequence[int]:
        """Descriptors that are readable when something has changed."""
        ...

    def read(self) -> bool:
        """Take in what the kernel has told; whether anything has changed."""
        ...

    def sync(self) -> None:
        """Make everything as it is to be."""
        ...

    def put_right(self) -> None:
        """Attach and pin again what somebody has detached or removed."""
        ...

    def detach(self) -> None:
        """Take everything out of the kernel."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


N = TypeVar("N", bound=Followed)
T = TypeVar("T")


class NodeFollower(Closeable, Generic[N]):
    """Keeps what ``make`` returns in step with the node, until it is closed. For any thread.

    It is in the calling thread's network namespace. What is in the kernel goes on when it is
    closed. KernelError, OSError: as ``make``.
    """

    name: ClassVar[str]
    """The thread's, and what messages call it."""
    settle_seconds: ClassVar[float] = 0.0
    """From a change to what is done about it: changes often come together."""
    look_seconds: ClassVar[float] = 1.0
    """What the kernel doesn't tell of, as programs and pins, is looked at so often."""
    resync_seconds: ClassVar[float] = 30.0
    """All is looked at so often, whatever has been told."""

    def __init__(self, make: Callable[[], N]) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._changed: float | None = None
        self._look_at = 0.0
        self._resync_at = time.monotonic() + self.resync_seconds
        self._refused: str | None = None
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._node: N = make()
            undo.enter_context(self._node)
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    def asked(self, question: Callable[[N], T]) -> T:
        """Answer a question, or make a change, while nothing else changes."""
        with self._lock:
            return question(self._node)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What isn't as it should be."""
        told = (self._refused,) if self._refused else ()
        return (*told, *self._node.troubles)

    def detach(self) -> None:
        """Take everything out of the kernel, and close."""
        self._end()
        self._node.detach()
        self._undo.close()

    def close(self) -> None:
        """End its thread. What is in the kernel goes on. Twice is once."""
        self._end()
        self._undo.close()

    def _end(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()

    # ---- Its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        for each in (*self._node.filenos(), self._wake):
            poll.register(each, select.POLLIN)
        while not self._stopped:
            pause = self._turn()
            poll.poll(max(1, round(pause * 1000)))
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def _turn(self) -> float:
        """Take in what has changed and do what is due; seconds until the next turn."""
        try:
            with self._lock:
                pause = self._follow()
        except Exception as error:  # noqa: BLE001 - a thread that ends follows nothing
            self._refused = told(f"{self.name}: the node isn't followed", error, self._refused)
            self._resync_at = 0.0
            return RETRY_SECONDS
        if self._refused is not None:
            log.info("%s: the node is followed again", self.name)
        self._refused = None
        return pause

    def _follow(self) -> float:
        now = time.monotonic()
        if self._node.read() and self._changed is None:
            self._changed = now
        due = self._changed is not None and now >= self._changed + self.settle_seconds
        if due or now >= self._resync_at:
            self._changed = None
            self._sync()
            self._resync_at = time.monotonic() + self.resync_seconds
        if now >= self._look_at:
            self._look()
            self._look_at = time.monotonic() + self.look_seconds
        now = time.monotonic()
        times = [self._resync_at - now, self._look_at - now]
        if self._changed is not None:
            times.append(self._changed + self.settle_seconds - now)
        return max(0.0, min(times))

    def _sync(self) -> None:
        self._node.sync()

    def _look(self) -> None:
        self._node.put_right()
