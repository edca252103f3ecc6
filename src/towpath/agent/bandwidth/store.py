# SPDX-License-Identifier: Apache-2.0
"""What was set while the agent runs: kept in a file of its own."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from towpath.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "bandwidth.json"


class Changes:
    """Limits by name, and the mode of BBR.

    AgentError: the file is not what was written, or can't be written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        found = self._read()
        self.limits: Mapping[str, Mapping[str, Any]] = found.get("limits", {})
        self.bbr: str | None = found.get("bbr")

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise AgentError(f"{self._path}: {error}; remove it to begin anew") from error
        if not isinstance(found, dict):
            raise AgentError(f"{self._path} is not what was written; remove it to begin anew")
        return found

    def put(self, limits: Mapping[str, Mapping[str, Any]], bbr: str | None) -> None:
        """Keep these, whole or not at all."""
        text = json.dumps({"limits": limits, "bbr": bbr}, indent=1, sort_keys=True)
        partial = self._path.with_suffix(".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path)
        except OSError as error:
            raise AgentError(f"{self._path}: {error.strerror}") from error
        self.limits, self.bbr = limits, bbr

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
