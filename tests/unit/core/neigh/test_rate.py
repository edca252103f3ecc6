# SPDX-License-Identifier: Apache-2.0
"""Requests a second, by a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from towpath.core.neigh.rate import Rate


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


def test_pause_is_until_a_share_may_be_made() -> None:
    """Not longer, so that the rate is reached."""
    rate = Rate(110)
    assert rate.allowed(1) == 10
    assert rate.pause() == 0
    rate.made(10)
    assert rate.allowed(1) == 0
    assert rate.allowed(1 + rate.pause() + 1e-9) == 10


def test_a_clock_that_stands_still_allows_no_more() -> None:
    """Nor does one that goes back."""
    rate = Rate(110)
    rate.allowed(10)
    rate.made(10)
    assert rate.allowed(10) == 0
    assert rate.allowed(9) == 0


def test_a_rate_of_nothing_is_refused() -> None:
    """It would never end."""
    with pytest.raises(ValueError, match="above 0"):
        Rate(0)
