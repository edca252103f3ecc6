# SPDX-License-Identifier: Apache-2.0
"""Indexes of a table that nothing has: those that were given up longest ago come first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class FreeIndexes:
    """Those that were free at first, in a few bytes each, then those that have come back."""

    def __init__(self, first: ArrayLike) -> None:
        self._first: NDArray[Any] = np.asarray(first, np.uint32)
        self._taken = 0
        self._back: deque[int] = deque()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._first) - self._taken + len(self._back)

    def take(self, count: int) -> list[int]:
        """Return so many, which have to be there."""
        taken: list[int] = self._first[self._taken : self._taken + count].tolist()
        self._taken += len(taken)
        return taken + [self._back.popleft() for _ in range(count - len(taken))]

    def give_back(self, index: int) -> None:
        """Have one again, after all others."""
        self._back.append(index)
