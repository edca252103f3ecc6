# SPDX-License-Identifier: Apache-2.0
"""Masquerade that follows the node, with a thread of its own."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.masquerade.node import Node
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from towpath.model.masquerade import Section

    T = TypeVar("T")

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.01
"""From a change to what is done about it: changes often come together."""
PORTS_SECONDS = 1.0
"""Sockets, pins and programs are looked at so often: the kernel doesn't tell of them."""
RESYNC_SECONDS = 30.0
"""All is looked at so often, whatever has been told."""
RETRY_SECONDS = 1.0


class Follower(Closeable):
    """Masquerade of pods, in the calling thread's network namespace, until it is closed.

    What it has made in the kernel goes on when it is closed. For any thread. ``named_sources``,
    ``indirect``, KernelError, OSError: as for `Node`.
    """

    def __init__(
        self,
        section: Section,
        pins: Path,
        *,
        named_sources: bool | None = None,
        indirect: Sequence[str] = (),
    ) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._changed: float | None = None
        self._ports_at = 0.0
        self._resync_at = 0.0
        self._refused: str | None = None
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._node = undo.enter_context(
                Node(section, pins, named_sources=named_sources, indirect=indirect)
            )
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="masquerade", daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    def asked(self, question: Callable[[Node], T]) -> T:
        """Answer a question while nothing changes."""
        with self._lock:
            return question(self._node)

    def replace_rules(self, section: Section) -> None:
        """Go by other rules from now on. KernelError: there is no room for them."""
        with self._lock:
            self._node.replace_rules(section)

    def replace_indirect(self, indirect: Sequence[str]) -> None:
        """Have others be indirect from now on. KernelError, OSError."""
        with self._lock:
            self._node.replace_indirect(indirect)

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
        for each in self._node.filenos():
            poll.register(each, select.POLLIN)
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
                log.warning("masquerade doesn't follow the node: %s; tried again", error)
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
            self._resync_at = time.monotonic() + RESYNC_SECONDS
        if now >= self._ports_at:
            self._node.watch_ports()
            self._node.put_right()
            self._ports_at = time.monotonic() + PORTS_SECONDS
        now = time.monotonic()
        times = [self._resync_at - now, self._ports_at - now]
        if self._changed is not None:
            times.append(self._changed + SETTLE_SECONDS - now)
        return max(0.0, min(times))
