# SPDX-License-Identifier: Apache-2.0
"""How late checks begin: what shows that the agent is held up, or that too many are under way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 60.0  # seconds


class Delays:
    """The longest delay of the last one to two minutes. One thread notes; any may ask.

    ``clock`` counts seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._now = self._before = 0.0

    def note(self, seconds: float) -> None:
        """Something began so late."""
        self._turn()
        self._now = max(self._now, seconds)

    def longest(self) -> float:
        """In seconds; 0 if nothing began."""
        self._turn()
        return max(self._now, self._before)

    def _turn(self) -> None:
        passed = self._clock() - self._since
        if passed >= WINDOW:
            self._before = self._now if passed < 2 * WINDOW else 0.0
            self._now, self._since = 0.0, self._clock()
