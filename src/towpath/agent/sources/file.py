# SPDX-License-Identifier: Apache-2.0
"""The configuration file as a source: besides services it brings everything else."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.agent.config.watch import INTERVAL
from towpath.api.documents import FileStatus
from towpath.model import ConfigError

if TYPE_CHECKING:
    from towpath.agent.config.file import ConfigFile
    from towpath.agent.sources.intake import Intake
    from towpath.model import Config


class FileSource:
    """Follows a file whose first content is in force. ``hurry`` has it read at once."""

    trouble: str | None = None

    def __init__(self, file: ConfigFile, intake: Intake[Config]) -> None:
        self.hurry = asyncio.Event()
        self._file = file
        self._intake = intake
        intake.accept()

    @property
    def status(self) -> FileStatus:
        """What is in force, and what was refused."""
        found = self._intake.status
        return FileStatus(
            self._file.path, found.accepted or "", refused=found.refused, problems=found.problems
        )

    async def run(self) -> None:
        """Hand the file in when it has changed, or at once when hurry is set.

        Also when it was refused for contradicting services that are others by now.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.hurry.wait(), INTERVAL)
            if self.hurry.is_set() or self._file.watch.changed() or self._intake.may_fit_now():
                self.hurry.clear()
                await self.read()

    async def read(self) -> None:
        """Hand in what the file says now, or note why it can't be read."""
        try:
            # Not on the writer's thread: changes go on while a large file is read.
            config = await asyncio.to_thread(self._file.read)
        except ConfigError as error:
            self._intake.refuse(error)
        else:
            await self._intake.offer(config)
