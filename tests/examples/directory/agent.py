# SPDX-License-Identifier: Apache-2.0
"""A directory as a source of services: what its files have, and nothing else, is desired."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from towpath.agent.sources.intake import Intake, Update
from towpath.model import ConfigError, parse_services

if TYPE_CHECKING:
    from tests.examples.directory.model import Section

SECONDS = 0.2  # between two looks

Content = dict[str, str]
"""The files' text by name."""


class Source:
    """Follows a directory."""

    def __init__(self, section: Section, intake: Intake[Update]) -> None:
        self.trouble: str | None = None
        self._path = section.path
        self._intake = intake
        self._known: Content | None = None

    async def run(self) -> None:
        """Hand in all of it whenever it has changed, or may fit by now."""
        while True:
            found = await asyncio.to_thread(self._read)
            if found is not None and (found != self._known or self._intake.may_fit_now()):
                self._known = found
                await self._hand_in(found)
            await asyncio.sleep(SECONDS)

    def _read(self) -> Content | None:
        """What is there; None, and trouble, when the directory can't be read."""
        try:
            files = sorted(each for each in self._path.iterdir() if each.suffix == ".yaml")
            found = {str(each): each.read_text() for each in files}
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"
            return None
        self.trouble = None
        return found

    async def _hand_in(self, found: Content) -> None:
        try:
            services = [each for name, text in found.items() for each in parse_services(text, name)]
        except ConfigError as error:
            self._intake.refuse(error)
        else:
            await self._intake.offer(Update(tuple(services)))
