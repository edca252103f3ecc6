# SPDX-License-Identifier: Apache-2.0
"""Ages that 16 bits can't say, beside the time that really passed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from towpath.datapath.flows.ages import Ages

PLACES, CHUNK = 10, 4
SPAN = 1 << 16

# How long until the next reading, and which places are seen how long before it.
rounds = st.lists(
    st.tuples(
        st.integers(1, SPAN - 1),
        st.dictionaries(st.integers(0, PLACES - 1), st.integers(0, SPAN - 1)),
    ),
    max_size=12,
)


@given(st.integers(0, 1 << 40), rounds)
def test_ages_are_right_if_read_once_in_a_span(begin: int, read: object) -> None:
    """Whatever is seen in between, and however long the others are not."""
    assert isinstance(read, list)
    ages, now = Ages(PLACES, CHUNK), begin
    seen = np.full(PLACES, begin, np.int64)
    for after, touched in [(0, {}), *read]:
        now += after
        for place, before in touched.items():
            # Not at the very step of 65,536 before: that can't be told.
            moment = now - before % max(after, 1)
            if (moment - seen[place]) % SPAN:
                seen[place] = max(moment, seen[place])
        for start in range(0, PLACES, CHUNK):
            part = seen[start : start + CHUNK]
            got = ages.read(start, (part % SPAN).astype(np.uint16), now)
            assert got.tolist() == (now - part).tolist()


def test_the_first_reading_knows_16_bits() -> None:
    """And the second goes on from there."""
    ages = Ages(CHUNK, CHUNK)
    seen = np.array([0, 5, 10, 65535], np.uint16)
    assert ages.read(0, seen, 3 * SPAN + 10).tolist() == [10, 5, 0, 11]
    assert ages.read(0, seen, 5 * SPAN).tolist() == [
        each + 2 * SPAN - 10 for each in (10, 5, 0, 11)
    ]


def test_a_reading_may_be_overtaken_by_a_later_one() -> None:
    """Of two threads the one that looked at the clock first may come to the ages last."""
    ages = Ages(CHUNK, CHUNK)
    seen = np.array([100, 90, 0, 40], np.uint16)
    assert ages.read(0, seen, SPAN + 100).tolist() == [0, 10, 100, 60]
    newer = np.array([100, 90, 0, 102], np.uint16)
    assert ages.read(0, newer, 2 * SPAN + 102).tolist() == [SPAN + 2, SPAN + 12, SPAN + 102, 0]
    assert ages.read(0, seen, 2 * SPAN + 99).tolist() == [SPAN - 1, SPAN + 9, SPAN + 99, 59]
    # The last place's 16 bits can't say more. What was read later is still known.
    assert ages.read(0, newer, 3 * SPAN).tolist() == [
        2 * SPAN - 100,
        2 * SPAN - 90,
        2 * SPAN,
        SPAN - 102,
    ]


def test_no_age_is_below_zero() -> None:
    """Where an overtaken reading's clock is behind an entry that both have seen."""
    ages = Ages(CHUNK, CHUNK)
    seen = np.full(CHUNK, 7, np.uint16)
    ages.read(0, seen, 7)
    assert ages.read(0, seen, 6).tolist() == [0] * CHUNK
