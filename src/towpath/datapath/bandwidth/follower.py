# SPDX-License-Identifier: Apache-2.0
"""Bandwidth that follows the node, with a thread of its own."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.bandwidth.node import Node
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any, TypeVar

    from towpath.model.bandwidth import Section

    T = TypeVar("T")

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""From a change to what is done about it: changes often come together."""
LOOK_SECONDS = 1.0
"""Programs and pins are looked at so often: the kernel doesn't tell of them."""
RESYNC_SECONDS = 10.0
"""All is looked at so often, whatever has been told."""
RETRY_SECONDS = 1.0


class Follower(Closeable):
    """Bandwidth in the calling thread's network namespace, until it is closed.

    What it has made in the kernel goes on when it is closed. For any thread. KernelError, OSError:
    as for `Node`.
    """

    def __init__(
        self, section: Section, pins: Path, changes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._changed: float | None = None
        self._look_at = 0.0
        self._resync_at = time.monotonic() + RESYNC_SECONDS
        self._refused: str | None = None
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._node = undo.enter_context(Node(section, pins, changes))
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="bandwidth", daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    def asked(self, question: Callable[[Node], T]) -> T:
        """Answer a question while nothing changes."""
        with self._lock:
            return question(self._node)

    def replace(
        self, section: Section, changes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Have other limits from now on. KernelError: there is no room for them."""
        with self._lock:
            self._node.replace(section, changes)

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
        poll.register(self._node.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
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
        except (KernelError, OSError) as error:
            if self._refused != str(error):
                log.warning("bandwidth doesn't follow the node: %s; tried again", error)
            self._refused = str(error)
            self._resync_at = 0.0
            return RETRY_SECONDS
        self._refused = None
        return pause

    def _follow(self) -> float:
        now = time.monotonic()
        if self._node.read() and self._changed is None:
            self._changed = now
        due = self._changed is not None and now >= self._changed + SETTLE_SECONDS
        if due or now >= self._resync_at:
            self._changed = None
            self._node.sync()
            self._node.read()  # what was told of our own changes
            self._resync_at = time.monotonic() + RESYNC_SECONDS
        if now >= self._look_at:
            self._node.put_right()
            self._look_at = time.monotonic() + LOOK_SECONDS
        now = time.monotonic()
        times = [self._resync_at - now, self._look_at - now]
        if self._changed is not None:
            times.append(self._changed + SETTLE_SECONDS - now)
        return max(0.0, min(times))
