# SPDX-License-Identifier: Apache-2.0
"""When a Service that changes again and again is looked at next.

One that hasn't changed for a while is looked at at once. What comes right after that waits for a
moment, and is then taken together: a change costs what its Service has, however little it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.core.kubernetes.cluster import Name

EACH_SECONDS = 0.00015
"""A Service rests so long for each of its backends: some ten times what a change takes for one."""
MOST_SECONDS = 0.05
"""And no longer, however many it has: so much later one that is gone gets no connections."""


class Pace:
    """Which of some Services rest. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._until: dict[Name, float] = {}
        self._rests: dict[Name, float] = {}
        """How long those rest that were looked at last."""

    def looked_at(self, name: Name, backends: int, now: float) -> None:
        """A Service is what it is to be by now, with so many backends at all its addresses."""
        self._rests[name] = min(backends * EACH_SECONDS, MOST_SECONDS)
        self._until[name] = now + self._rests[name]

    def in_force(self, now: float) -> None:
        """All that was looked at is in force only now, and rests from now on."""
        self._until |= {name: now + rest for name, rest in self._rests.items()}
        self._rests.clear()

    def due(self, names: Iterable[Name], now: float) -> frozenset[Name]:
        """Those that don't rest."""
        self._forget(now)
        return frozenset(name for name in names if name not in self._until)

    def next_due(self, names: Iterable[Name], now: float) -> float | None:
        """Seconds until the first of them rests no more; 0: one doesn't. None: there is none."""
        self._forget(now)
        return min((self._until.get(name, now) - now for name in names), default=None)

    def _forget(self, now: float) -> None:
        """Whose time is over: what is left is few, as hardly any has changed in the last moment."""
        self._until = {name: until for name, until in self._until.items() if until > now}
