# SPDX-License-Identifier: Apache-2.0
"""Waiting for the user, or the system, to ask a script to end."""

from __future__ import annotations

import select
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def asked_to_end() -> tuple[signal.Signals, ...]:
    """Signals that ask for the end: Ctrl-C, SIGTERM, and that the terminal has gone.

    The last not if it is ignored, as by nohup.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))


def wait_for_end(
    meanwhile: Callable[[], object] = lambda: None, every: float = 1.0, on: int | None = None
) -> None:
    """Return when a signal of `asked_to_end` comes, whichever thread the kernel gives it to.

    ``meanwhile`` is called ``every`` so many seconds, and when the descriptor ``on`` has
    something to read, which it is to take.

    For the main thread only, as signal handlers are: elsewhere ValueError.
    """
    # A signal that is already here when waiting begins raises this instead.
    asked = asked_to_end()
    with suppress(KeyboardInterrupt), _signals(asked) as signals:
        waiting = select.poll()
        for each in (signals, on):
            if each is not None:
                waiting.register(each, select.POLLIN)
        while True:
            ready = [fd for fd, _ in waiting.poll(every * 1000)]
            if signals.fileno() in ready and signals.recv(1)[0] in asked:
                return
            meanwhile()


@contextmanager
def _signals(asked: Iterable[signal.Signals]) -> Iterator[socket.socket]:
    """Give a socket that has the number of each signal that comes, one byte each.

    sigwait() would need the signals blocked in every other thread as well: one that is
    delivered to a thread that never waits for it is never seen.
    """
    reader, writer = socket.socketpair()
    with ExitStack() as undo:
        undo.enter_context(reader)
        undo.enter_context(writer)
        writer.settimeout(0)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno()))
        for number in asked:
            before = signal.signal(number, lambda *_: None)
            # None: the handler wasn't Python's, which can't put it back.
            undo.callback(signal.signal, number, before or signal.SIG_DFL)
        yield reader
