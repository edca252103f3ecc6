# SPDX-License-Identifier: Apache-2.0
"""What is fair, of flows that ask for so much."""

from __future__ import annotations

import pytest

from towpath.bench.bandwidth_fair import jain, shares


def test_jain_is_one_for_equals_and_a_share_for_one_that_has_all() -> None:
    """As its paper has it."""
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert jain([0.0, 0.0]) == 0.0


def test_what_small_flows_leave_is_shared_by_the_others() -> None:
    """Max-min fairness: nobody gets more than is asked for, in whatever order they are."""
    assert shares(12.0, [12.0, 12.0, 12.0]) == [4.0, 4.0, 4.0]
    assert shares(12.0, [12.0, 1.0, 12.0, 1.0]) == [5.0, 1.0, 5.0, 1.0]
    assert shares(12.0, [1.0, 2.0]) == [1.0, 2.0]
