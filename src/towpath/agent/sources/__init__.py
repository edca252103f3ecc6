# SPDX-License-Identifier: Apache-2.0
"""Where desired services come from. A source is a line of ``towpath.capabilities.ORIGINS``.

Its module in this layer has a class ``Source``, which is called with its section of the
configuration (None if it has none) and an :class:`~towpath.agent.sources.intake.Intake`. What a
source has handed in is kept on disk: until it hands in something else, and also when the agent
starts while the source is away, its services are what they were.
"""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """Somewhere that services come from."""

    @property
    def trouble(self) -> str | None:
        """Why it can't be read just now; None when all is well."""
        ...

    async def run(self) -> None:
        """Hand in what it has, then whatever changes, until it is cancelled."""
        ...
