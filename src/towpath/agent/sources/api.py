# SPDX-License-Identifier: Apache-2.0
"""The HTTP API as a source: its changes come as requests, each answered with what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.agent.sources.intake import Intake, Update


class Source:
    """Has nothing to hand in by itself: routes ask the controller, and get its refusals."""

    trouble: str | None = None

    def __init__(self, section: None, intake: Intake[Update]) -> None:
        del section, intake

    async def run(self) -> None:
        """Nothing: what was set before is on disk, and in force."""
