# SPDX-License-Identifier: Apache-2.0
"""Requests a second, by a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from towpath.core.neigh.rate import Rate, asked_together


@pytest.mark.parametrize("per_second", [0.5, 1, 7, 100, 5000])
def test_no_second_has_more_than_its_share(per_second: float) -> None:
    """However often is asked, and after a pause of any length."""
    rate = Rate(per_second)
    made = np.zeros(10_000, dtype=int)  # by millisecond
    for now in [*range(7000), *range(9000, 10_000)]:
        made[now] = rate.allowed(5 + now / 1000)
        rate.made(int(made[now]))
    assert np.convolve(made, np.ones(1000, dtype=int)).max() <= max(1, per_second)
    assert made[:7000].sum() >= int(per_second * 6.3)


@pytest.mark.parametrize("together", [0.5, 1, 2.048, 5.12])
def test_what_is_asked_for_together_is_no_more_than_a_seconds_share(together: float) -> None:
    """Wherever the time begins in which it was made."""
    rate = Rate(100, together)
    made = np.zeros(30_000, dtype=int)  # by millisecond
    for now in range(30_000):
        made[now] = rate.allowed(5 + now / 1000)
        rate.made(int(made[now]))
    width = round(1000 * max(1, together))
    most = np.convolve(made, np.ones(width, dtype=int)).max()
    assert 90 <= most <= 100


@pytest.mark.parametrize(
    ("hz", "seconds", "expected"),
    [(100, 45, 5.12), (250, 45, 2.048), (300, 45, 1.707), (1000, 45, 4.096), (1000, 30, 0.512)],
)
def test_timers_expire_together(hz: int, seconds: float, expected: float) -> None:
    """As the table in the kernel's kernel/time/timer.c has it."""
    assert asked_together(hz, seconds) == pytest.approx(expected, abs=0.001)


def test_pause_is_until_a_share_may_be_made() -> None:
    """Not longer, so that the rate is reached."""
    rate = Rate(112)
    assert rate.allowed(1) == 10
    assert rate.pause() == 0
    rate.made(10)
    assert rate.allowed(1) == 0
    assert rate.allowed(1 + rate.pause() + 1e-9) == 10


def test_a_clock_that_stands_still_allows_no_more() -> None:
    """Nor does one that goes back."""
    rate = Rate(112)
    rate.allowed(10)
    rate.made(10)
    assert rate.allowed(10) == 0
    assert rate.allowed(9) == 0


def test_a_rate_of_nothing_is_refused() -> None:
    """It would never end."""
    with pytest.raises(ValueError, match="above 0"):
        Rate(0)
