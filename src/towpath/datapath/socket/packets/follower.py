# SPDX-License-Identifier: Apache-2.0
"""Services in packets that follow the node's devices, with a thread of their own."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.socket.packets.node import Node
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.model.socket import Packets

    T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Programs and pins are looked at so often: the kernel doesn't tell of them."""
RESYNC_SECONDS = 30.0
"""All is looked at so often, whatever has been told."""
RETRY_SECONDS = 1.0


class Follower(Closeable):
    """A `Node` with a thread that keeps it in step, until it is closed. For any thread.

    KernelError, OSError: as for `Node`.
    """

    def __init__(
        self,
        tables: SharedMaps,
        contents: Contents,
        section: Packets,
        epoch: int,
        pins: Path | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._refused: str | None = None
        self._resync_at = time.monotonic() + RESYNC_SECONDS
        self._look_at = 0.0
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._node = undo.enter_context(Node(tables, contents, section, epoch, pins))
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="socket-packets", daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    def asked(self, question: Callable[[Node], T]) -> T:
        """Answer a question while nothing changes."""
        with self._lock:
            return question(self._node)

    def replace_devices(self, devices: Sequence[str]) -> None:
        """Be on these devices from now on. KernelError, OSError."""
        with self._lock:
            self._node.replace_devices(devices)

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
        """End its thread. What is pinned in the kernel goes on. Twice is once."""
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
        for each in (self._node.fileno(), self._wake):
            poll.register(each, select.POLLIN)
        while not self._stopped:
            poll.poll(max(1, round(self._turn() * 1000)))
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def _turn(self) -> float:
        """Take in what has changed and do what is due; seconds until the next turn."""
        try:
            with self._lock:
                self._follow()
        except (KernelError, OSError) as error:
            if self._refused != str(error):
                log.warning("services in packets don't follow the node: %s; tried again", error)
            self._refused = str(error)
            self._resync_at = 0.0
            return RETRY_SECONDS
        self._refused = None
        return max(0.0, min(self._resync_at, self._look_at) - time.monotonic())

    def _follow(self) -> None:
        now = time.monotonic()
        # At once: a new pod's first packets come soon.
        if self._node.read() or now >= self._resync_at:
            self._node.sync()
            self._resync_at = time.monotonic() + RESYNC_SECONDS
        if now >= self._look_at:
            self._node.put_right()
            self._look_at = time.monotonic() + LOOK_SECONDS
