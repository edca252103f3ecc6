# SPDX-License-Identifier: Apache-2.0
"""What a source has told a part, kept in a file for the time until the next agent is told it.

It isn't the user's: one that can't be read counts for nothing, since the source will tell again.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from towpath.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)


class Told:
    """One file. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, make: Callable[[Any], Any]) -> Any:
        """Return what ``make`` makes of it; None: there is none, or none that can be read."""
        try:
            return make(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: %s; it counts for nothing until it is told anew", self._path, error)
            return None

    def write(self, found: object) -> None:
        """Keep it, whole or not at all. AgentError."""
        partial = self._path.with_suffix(".partial")
        try:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(found), encoding="utf-8")
            partial.rename(self._path)
        except OSError as error:
            raise AgentError(f"{self._path}: {error.strerror}") from error

    def forget(self) -> None:
        """Remove it. None is fine."""
        self._path.unlink(missing_ok=True)
