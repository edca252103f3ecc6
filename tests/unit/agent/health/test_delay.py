# SPDX-License-Identifier: Apache-2.0
"""How late checks begin."""

from __future__ import annotations

from towpath.agent.health.delay import WINDOW, Delays


def test_the_longest_of_the_last_minute_or_two() -> None:
    """So that a scrape a minute misses none, and an old one is forgotten."""
    now = 100.0
    delays = Delays(lambda: now)
    assert delays.longest() == 0
    delays.note(0.5)
    delays.note(0.25)
    assert delays.longest() == 0.5
    now += WINDOW
    delays.note(0.125)
    assert delays.longest() == 0.5
    now += WINDOW
    assert delays.longest() == 0.125
    now += WINDOW
    assert delays.longest() == 0


def test_after_a_long_silence_nothing_is_left() -> None:
    """When there were no checks."""
    now = 100.0
    delays = Delays(lambda: now)
    delays.note(0.5)
    now += 10 * WINDOW
    assert delays.longest() == 0
