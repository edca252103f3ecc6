# SPDX-License-Identifier: Apache-2.0
"""How old entries are while packets make them young."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from towpath.datapath.migration.written import Written, ages_of


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ages_go_round(dtype: Any) -> None:
    """As the low bits do that entries have."""
    span = 1 << 8 * np.dtype(dtype).itemsize
    seen = np.array([5, 0, span - 1, span - 100], dtype)
    assert ages_of(seen, span * 3 + 5).tolist() == [0, 5, 6, 105]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_what_was_seen_after_the_clock_was_read_is_young(dtype: Any) -> None:
    """And not the oldest that there is."""
    seen = np.array([6, 1000], dtype)
    assert ages_of(seen, 5).tolist() == [0, 0]


def test_what_stands() -> None:
    """An entry that has another word by now was written by somebody else."""
    refs = np.zeros((4, 8), np.uint64)
    written = Written(refs)
    sets, ways = np.array([1, 2]), np.array([3, 4])
    assert not written.stands(sets, ways).any()
    written.store(sets, ways, np.array([7, 8], np.uint64))
    assert refs[1, 3] == 7
    refs[2, 4] = 9
    assert written.stands(sets, ways).tolist() == [True, False]
