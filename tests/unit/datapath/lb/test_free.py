# SPDX-License-Identifier: Apache-2.0
"""Free indexes take turns, and are told apart from those that are taken."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from towpath.datapath.lb.free import FreeIndexes


@given(st.lists(st.integers(0, 5)), st.sets(st.integers(1, 30)))
def test_they_come_in_the_order_in_which_they_were_given_up(
    steps: list[int], first: set[int]
) -> None:
    """As of a queue."""
    found, queue, taken = FreeIndexes(sorted(first)), deque(sorted(first)), deque[int]()
    for count in steps:
        wanted = [queue.popleft() for _ in range(min(count, len(queue)))]
        assert found.take(len(wanted)) == wanted
        taken.extend(wanted)
        if not count and taken:
            queue.append(taken[0])
            found.give_back(taken.popleft())
        assert len(found) == len(queue)
