# SPDX-License-Identifier: Apache-2.0
"""What time it was when a packet came: records have CLOCK_MONOTONIC, files nanoseconds since 1970.

The one goes on steadily; the other is set: by hand, by NTP after a start, in a guest that was
suspended. So the offset between them is looked at again and again, and what was captured before it
changed keeps the time that it had then.
"""

from __future__ import annotations

import threading
import time

STEP_NANOSECONDS = 1_000_000
"""By how much the offset must have changed to be another. Less is what readings differ by."""
_TRIES = 8


def read_clocks() -> tuple[int, int]:
    """Return CLOCK_MONOTONIC and what it lacks to nanoseconds since 1970: the best of several."""
    found = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        now = time.time_ns()
        after = time.monotonic_ns()
        found.append((after - before, after, now - (before + after) // 2))
    _, monotonic, offset = min(found)
    return monotonic, offset


class WallClock:
    """The offset, and how it has changed. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: list[tuple[int, int]] = []
        _, self.offset = read_clocks()

    def look(self) -> int:
        """See whether the clock has been set; returns what time it is, in nanoseconds since 1970.

        What is captured between the setting and this look is dated by the clock of before.
        """
        with self._lock:
            monotonic, offset = read_clocks()
            if abs(offset - self.offset) >= STEP_NANOSECONDS:
                self.offset = offset
                self._changes.append((monotonic, offset))
            return monotonic + self.offset

    def changes(self) -> list[tuple[int, int]]:
        """Return changes that were not returned before: since when, and the offset."""
        with self._lock:
            made, self._changes = self._changes, []
        return made
