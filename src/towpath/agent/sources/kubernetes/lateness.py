# SPDX-License-Identifier: Apache-2.0
"""How long it takes until what was told is in force."""

from __future__ import annotations

import time


class Lateness:
    """Kept by one thread; any may ask."""

    def __init__(self) -> None:
        self._told: float | None = None
        self._begun: float | None = None
        self.seconds = 0.0
        """Of all changes together."""
        self.times = 0
        """How often changes were put into force, together with what came meanwhile."""

    def told(self) -> None:
        """Something has changed."""
        if self._told is None:
            self._told = time.monotonic()

    def begin(self) -> None:
        """What was told by now is being put into force."""
        if self._begun is None:
            self._begun = self._told
        self._told = None

    def done(self) -> None:
        """It is."""
        if self._begun is not None:
            self.seconds += time.monotonic() - self._begun
            self.times += 1
        self._begun = None

    @property
    def behind(self) -> float:
        """Since when something was told that isn't in force; 0: all is."""
        since = self._begun if self._begun is not None else self._told
        return 0.0 if since is None else time.monotonic() - since
