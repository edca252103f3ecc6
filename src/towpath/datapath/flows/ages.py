# SPDX-License-Identifier: Apache-2.0
"""How long entries of a table of flows have not been seen, beyond what their 16 bits can say.

An entry that still has the `seen` that it had when it was last read is older by the
time since. So ages are right from the second reading on, if readings are not further
apart than the 16 bits reach.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]

_MODULUS = 1 << 16
_JIFFIES_MODULUS = 1 << 32
_NEVER = -1


class Clock:
    """Counts steps of 2**shift jiffies from their low 32 bits, and doesn't go round.

    ``jiffies`` returns these bits. For any thread.
    """

    def __init__(self, jiffies: Callable[[], int], shift: int) -> None:
        self._jiffies = jiffies
        self._shift = shift
        self._last: int = jiffies()
        self._lock = Lock()

    def steps(self) -> int:
        """Return the steps until now. Ask at least once in 2**32 jiffies (49 days at 1000 Hz)."""
        with self._lock:
            self._last += (self._jiffies() - self._last) % _JIFFIES_MODULUS
            return self._last >> self._shift


class Ages:
    """The ages of ``places`` entries as of their last reading, ``chunk`` of them at a time.

    In steps of `seen`. For any thread.
    """

    def __init__(self, places: int, chunk: int) -> None:
        self._chunk = chunk
        self._seen = np.zeros(places, np.uint16)
        self._ages = np.zeros(places, np.uint32)
        self._read_at = [_NEVER] * -(-places // chunk)
        self._lock = Lock()

    def read(self, start: int, seen: Array, now: int) -> Array:
        """Return the ages of entries from ``start`` on, a multiple of the chunk.

        ``seen``: uint16, of each of them, free ones too. ``now``: steps that don't go
        round, and the low 16 bits of which `seen` is in. It may be less than another
        thread's that was here first: that reading is the newer one, and is kept.
        """
        ages = ((now - seen.astype(np.int64)) % _MODULUS).astype(np.uint32)
        here, chunk = slice(start, start + len(seen)), start // self._chunk
        with self._lock:
            before = self._read_at[chunk]
            if before != _NEVER:
                grown = np.maximum(self._ages[here].astype(np.int64) + (now - before), 0)
                ages = np.where(seen == self._seen[here], grown, ages).astype(np.uint32)
            if now < before:
                return ages
            self._seen[here] = seen
            self._ages[here] = ages
            self._read_at[chunk] = now
        return ages
