# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it says, and whether it has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.agent.config.load import read_config
from towpath.agent.config.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model import Config


class ConfigFile:
    """A configuration file that is followed.

    Raises ConfigError when it can't be read or is wrong the first time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = Watch(path)
        self.first = self.read()

    def read(self) -> Config:
        """Read and check the file as it is now; raises ConfigError."""
        self.watch.taken()
        return read_config(self.path)
