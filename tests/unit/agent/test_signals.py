# SPDX-License-Identifier: Apache-2.0
"""A wish for the end isn't lost while an agent begins anew in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from towpath.agent.signals import END, Signals


def test_one_that_came_before() -> None:
    """While parts ended: nobody begins then."""
    with Signals() as signals:
        signals.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.hold()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END)


def test_one_that_comes_in_between() -> None:
    """Who begins next ends at once."""
    with Signals() as signals:
        signals.wait()
        assert not signals.hold()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    with pytest.raises(SystemExit), Signals():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_that_another_thread_gets() -> None:
    """It ends the process, whose next beginning would not hear of it."""
    text = """
import os, signal, threading, time
from towpath.agent.signals import Signals
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with Signals() as signals:
    signals.wait()
    assert not signals.hold()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    ran = subprocess.run([sys.executable, "-c", text], check=False, timeout=30)
    assert ran.returncode == -signal.SIGTERM
