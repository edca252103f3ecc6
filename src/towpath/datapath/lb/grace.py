# SPDX-License-Identifier: Apache-2.0
"""When an entry that the program may still be reading can be used again.

A packet in flight holds what it read for microseconds. An entry that was taken
out of use is kept aside until every such packet is through, and waiting for that
takes milliseconds; so it is done for all of them at once, and only when there
is nothing else left to use.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Reclaimer:
    """Keeps what was freed until no reader can see it."""

    def __init__(self, wait_for_readers: Callable[[], None]) -> None:
        self._wait = wait_for_readers
        self._kept: deque[Callable[[], None]] = deque()

    def retire(self, free: Callable[[], None]) -> None:
        """Call ``free`` once the packets now in flight are through."""
        self._kept.append(free)

    def reclaim(self) -> bool:
        """Wait for readers and free what was kept. False if there was nothing."""
        before_the_wait = len(self._kept)
        if not before_the_wait:
            return False
        self._wait()
        for _ in range(before_the_wait):
            self._kept.popleft()()
        return True
