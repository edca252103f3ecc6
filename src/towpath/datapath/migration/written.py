# SPDX-License-Identifier: Apache-2.0
"""What copies of tables share that the program writes at the same time."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Written:
    """The publishing words that were stored in ``refs``, a mapping of shape (sets, ways).

    An entry that still has its word is as it was written: had the program learnt something
    else there, it would have another.
    """

    def __init__(self, refs: Array) -> None:
        self._refs = refs
        self._stored: Array | None = None

    def store(self, sets: Array, ways: Array, refs: Array) -> None:
        """Publish entries, one word each, none of them 0."""
        if self._stored is None:
            self._stored = np.zeros(self._refs.shape, np.uint64)
        self._refs[sets, ways] = refs
        self._stored[sets, ways] = refs

    def stands(self, sets: Array, ways: Array) -> Array:
        """Return which entries have the word that was stored in them."""
        if self._stored is None:
            return np.zeros(len(sets), bool)
        return np.asarray(self._stored[sets, ways] == self._refs[sets, ways])


def ages_of(seen: Array, now: int) -> Array:
    """Return how many units before ``now`` entries were seen, of which ``seen`` has the low bits.

    Packets come while tables are copied: one that was seen after ``now`` was asked for is as
    young as can be. So is one that would be older than 15 sixteenths of what the bits reach.
    """
    span = 1 << 8 * seen.dtype.itemsize
    ages = (now - seen.astype(np.int64)) % span
    return np.where(ages < span - span // 16, ages, 0)
