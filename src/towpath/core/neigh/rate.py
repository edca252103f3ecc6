# SPDX-License-Identifier: Apache-2.0
"""How many requests may be made now, so that the network isn't asked for all at once."""

from __future__ import annotations

PARTS = 10
"""Of a second: a part's share may be made at once."""


class Rate:
    """At most ``per_second`` in any second, in shares of about a tenth of it.

    A token bucket that holds one share, and is filled with so much less that a second sees no more
    than ``per_second`` wherever it begins. ``now`` is in seconds of any clock that doesn't go back.
    """

    def __init__(self, per_second: float) -> None:
        if per_second <= 0:
            raise ValueError(f"a rate of {per_second} a second; it has to be above 0")
        self.per_second = per_second
        self._filled = per_second * PARTS / (PARTS + 1)
        self._most = max(1.0, self._filled / PARTS)
        self._left = self._most
        self._then: float | None = None

    def allowed(self, now: float) -> int:
        """How many may be made now."""
        if self._then is not None:
            more = max(0.0, now - self._then) * self._filled
            self._left = min(self._most, self._left + more)
        self._then = now
        return int(self._left)

    def made(self, count: int) -> None:
        """Note how many were made."""
        self._left -= count

    def pause(self) -> float:
        """Seconds until a whole share may be made."""
        return max(0.0, (self._most - self._left) / self._filled)
