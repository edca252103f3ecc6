# SPDX-License-Identifier: Apache-2.0
"""The configuration file as a source: besides services it brings everything else."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.agent.config.watch import INTERVAL
from towpath.api.documents import FileStatus
from towpath.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.agent.config.file import ConfigFile
    from towpath.agent.sources.intake import Intake
    from towpath.model import Config

log = logging.getLogger(__name__)


class FileSource:
    """Follows a file whose first content is in force. ``hurry`` has it read at once.

    ``lacks`` says what is wrong all the same when a content has been put into force.
    """

    def __init__(
        self,
        file: ConfigFile,
        intake: Intake[Config],
        lacks: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.hurry = asyncio.Event()
        self._file = file
        self._intake = intake
        self._lacks = lacks
        intake.accept()

    @property
    def trouble(self) -> str | None:
        """Why the file could not be put into force though it may be right."""
        return self._intake.trouble

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
                try:
                    await self.read()
                except BaseException:
                    # What was wrong is not the file: it is read again when this is begun again.
                    self.hurry.set()
                    raise

    async def read(self) -> None:
        """Hand in what the file says now, or note why it can't be read.

        OSError: no process could be begun to read it; AgentError: the process was ended.
        """
        try:
            # Not on the writer's thread: changes go on while a large file is read.
            config = await asyncio.to_thread(self._file.read)
        except ConfigError as error:
            self._intake.refuse(error)
        else:
            if await self._intake.offer(config) and (lacks := self._lacks()):
                log.warning("%s: but %s", self._file.path, lacks)
