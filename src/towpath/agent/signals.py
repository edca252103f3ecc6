# SPDX-License-Identifier: Apache-2.0
"""Signals to an agent, from its first moment to its last."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

END = (signal.SIGTERM, signal.SIGINT)
RELOAD = signal.SIGHUP
_ROOM = 4096


class Signals(Closeable):
    """Takes SIGTERM and SIGINT, which ask to end, and SIGHUP, until it is closed.

    None of them has its default effect: a hang-up while an agent starts or ends, or a second wish
    for its end, would leave things half done. On the way up the first wish for the end raises
    SystemExit or KeyboardInterrupt; from `wait` on all are kept for `read`. For the main thread.
    """

    def __init__(self) -> None:
        self._raises = True
        self._reader, self._writer = socket.socketpair()
        with ExitStack() as undo:
            undo.enter_context(self._reader)
            undo.enter_context(self._writer)
            for each in (self._reader, self._writer):
                each.settimeout(0)
            # Whichever thread the kernel gives a signal to, who polls this is woken.
            before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, before)
            for number in (*END, RELOAD):
                handler = signal.signal(number, self._handle)
                undo.callback(signal.signal, number, handler or signal.SIG_DFL)
            # What came while an agent began anew in this process was held for it.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, END)
            self._undo = undo.pop_all()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == RELOAD or not self._raises:
            return
        self._raises = False
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit()

    def wait(self) -> None:
        """Let none of them raise anything any more."""
        self._raises = False

    def fileno(self) -> int:
        """Readable when there is one."""
        return self._reader.fileno()

    def read(self) -> Iterable[int]:
        """Those that have come since, and before."""
        try:
            return self._reader.recv(_ROOM)
        except BlockingIOError:
            return b""

    def hold(self) -> bool:
        """Keep wishes for the end from now on for who begins next in this process.

        Whether there has been one already.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, END)
        # Only this thread holds them back. One that the kernel gives to another thread would be
        # noted and forgotten: it ends the process instead, of which by now nothing is left to end.
        for number in END:
            signal.signal(number, signal.SIG_DFL)
        return not set(END).isdisjoint(self.read())

    def close(self) -> None:
        """Have signals do what they did before."""
        self._undo.close()
