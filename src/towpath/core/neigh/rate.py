# SPDX-License-Identifier: Apache-2.0
"""How many requests may be made now, so that the network isn't asked for all at once.

What is made together is asked for again together, ever after: the kernel's timers are the coarser
the longer they are. So entries are made more slowly than requests may be sent.
"""

from __future__ import annotations

PARTS = 10
"""Of a second: a part's share may be made at once."""
REACHABLE_SECONDS = 45.0
"""After at most so long the kernel asks again: 1.5 times ``base_reachable_time_ms``, by default."""
# kernel/time/timer.c: a level of the timer wheel has 64 slots, each eight times as wide as one of
# the level before.
_SLOTS, _WIDER = 63, 8


def asked_together(hz: int, seconds: float = REACHABLE_SECONDS) -> float:
    """Within how many seconds timers of so many seconds expire at once, in a kernel with that HZ.

    0.5 to 5.1 for the kernel's usual times.
    """
    jiffies, width = seconds * hz, 1
    while jiffies > _SLOTS * width:
        width *= _WIDER
    return width / hz


class Rate:
    """At most ``per_second`` in any second, in shares of about a tenth of it.

    ``together``: nor in any so many seconds, as `asked_together` has it. A token bucket that holds
    one share. ``now`` is in seconds of any clock that doesn't go back.
    """

    def __init__(self, per_second: float, together: float = 1.0) -> None:
        if per_second <= 0:
            raise ValueError(f"a rate of {per_second} a second; it has to be above 0")
        self._filled = per_second / (max(1.0, together) + 1 / PARTS)
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
