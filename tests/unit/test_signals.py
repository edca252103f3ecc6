# SPDX-License-Identifier: Apache-2.0
"""Which signals ask a command for its end."""

from __future__ import annotations

import signal

import pytest

from towpath.signals import asked_to_end


@pytest.mark.parametrize(
    ("handler", "asks"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False), (print, True)]
)
def test_a_terminal_that_goes_asks_unless_that_is_ignored(
    handler: signal._HANDLER,
    asks: bool,  # noqa: FBT001 -- a case
) -> None:
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert (signal.SIGHUP in asked_to_end()) is asks
        assert {signal.SIGINT, signal.SIGTERM} < {*asked_to_end(), None}
    finally:
        signal.signal(signal.SIGHUP, before)
