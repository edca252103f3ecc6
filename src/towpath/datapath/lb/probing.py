# SPDX-License-Identifier: Apache-2.0
"""Free slots of an index with linear probing, which the program reads while it is written.

A slot is taken while its word is not 0: what is stored last, and taken away first. One that was
given up is free again only when no packet can still be reading what was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from towpath.datapath.lb.grace import Reclaimer


class FreeSlots:
    """``words`` has the word of each slot, a power of two of them; ``probes`` are looked at."""

    def __init__(self, words: np.ndarray[Any, Any], probes: int, reclaimer: Reclaimer) -> None:
        self._words = words
        self._mask = len(words) - 1
        self._probes = probes
        self._reclaimer = reclaimer
        self._retired: set[int] = set()

    def find(self, first: int) -> int | None:
        """Return a free one from ``first`` on, after a wait if need be. None: all are taken."""
        at = self._look(first)
        if at is None and self._reclaimer.reclaim():
            at = self._look(first)
        return at

    def retire(self, at: int) -> None:
        """Have one, whose word is 0 by now, be free once the packets in flight are through."""
        self._retired.add(at)
        self._reclaimer.retire(lambda: self._retired.discard(at))

    def _look(self, first: int) -> int | None:
        for i in range(self._probes):
            at = (first + i) & self._mask
            if not self._words[at] and at not in self._retired:
                return at
        return None
