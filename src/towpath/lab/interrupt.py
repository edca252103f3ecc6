# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a command to stop, made into an exception that unwinds it."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from towpath.signals import asked_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(BaseException):
    """The user, or the system, wants the command to stop.

    Like KeyboardInterrupt it is no Exception: nothing that handles errors takes it.
    """


class _Stop:
    """What is known of signals to stop; one for the process, as signal handlers are."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.raised = False
        self.held = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the undoing that it sets off is not undone by others."""
        del frame
        self.number = self.number or number
        self.check()

    def check(self) -> None:
        """Raise, once, if there was a signal and nothing holds it back."""
        if self.number is not None and not self.raised and not self.held:
            self.raised = True
            raise Interrupted


_stop = _Stop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise Interrupted, the first of them only.

    When everything has been undone the process ends by that same signal, so whoever
    started it sees what ended it.
    """
    before = {number: signal.signal(number, _stop.handle) for number in asked_to_end()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if _stop.number is not None:
            signal.signal(_stop.number, signal.SIG_DFL)
            signal.raise_signal(_stop.number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within, a signal to stop waits: for what must be done whole or not at all."""
    _stop.held += 1
    try:
        yield
    finally:
        _stop.held -= 1
        _stop.check()
