# SPDX-License-Identifier: Apache-2.0
"""A wish for the end isn't lost while an agent begins anew in its own process."""

from __future__ import annotations

import os
import signal

import pytest

from towpath.agent.signals import END, Signals


def test_one_that_came_before() -> None:
    """While parts ended: nobody begins then."""
    with Signals() as signals:
        signals.wait()
        assert not signals.hold()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.hold()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END)


def test_one_that_comes_in_between() -> None:
    """Who begins next ends at once."""
    with Signals() as signals:
        signals.wait()
        assert not signals.hold()
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit), Signals():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
