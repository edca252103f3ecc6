# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what is in force, and why its last change is not."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from towpath.agent.config.load import read_config
from towpath.agent.config.watch import Watch
from towpath.agent.errors import RequestError
from towpath.api.documents import FileStatus
from towpath.model import Config, ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


def now() -> str:
    """The time, ISO 8601 with its offset, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ConfigFile:
    """A configuration file that is followed.

    Raises ConfigError when it can't be read or is wrong the first time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = Watch(path)
        self.first = self.read()
        self._status = FileStatus(path, accepted=now())

    @property
    def status(self) -> FileStatus:
        """What is in force, and what was refused."""
        return self._status

    def read(self) -> Config:
        """Read and check the file as it is now; raises ConfigError."""
        self.watch.taken()
        return read_config(self.path)

    def accept(self) -> None:
        """What was last read is in force."""
        log.info("%s: in force", self.path)
        self._status = FileStatus(self.path, accepted=now())

    def refuse(self, error: Exception) -> None:
        """What was last read is not taken over; what was in force before stays."""
        self._status = FileStatus(
            self.path, self._status.accepted, refused=now(), problems=problems_in(error)
        )
        for problem in self._status.problems:
            log.error("refused, the running configuration stays in force: %s", problem)


def problems_in(error: Exception) -> tuple[Problem, ...]:
    """What an error says, as problems."""
    if isinstance(error, ConfigError | RequestError):
        return error.problems
    return (Problem(str(error)),)
