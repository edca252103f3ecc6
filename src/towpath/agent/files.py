# SPDX-License-Identifier: Apache-2.0
"""An agent's own files, which somebody may remove: its socket, its database."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from towpath.capabilities import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

SECONDS = 1.0
"""Between two looks."""


def own_names() -> tuple[str, ...]:
    """How names of what agents and clean-ups have in the state directory begin."""
    of_capabilities = (name for each in CAPABILITIES for name in each.files())
    return (*of_capabilities, "kubernetes.json", "kube-proxy")


class Files:
    """Files that are there now, and what it means when they aren't any more.

    They are open, so that nothing fails when their names go: it has to be looked for.
    """

    def __init__(self, files: Mapping[Path, str]) -> None:
        self._meaning = files
        self._known = {path: _identity(path) for path in files}
        self.troubles: tuple[str, ...] = ()
        """Which are gone, or others by now. For any thread."""

    async def run(self) -> None:
        """Look, until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(SECONDS)

    def look(self) -> None:
        """Look once."""
        lost = [path for path, before in self._known.items() if _identity(path) != before]
        troubles = tuple(f"{path} was removed or replaced: {self._meaning[path]}" for path in lost)
        for trouble in troubles:
            if trouble not in self.troubles:
                log.warning("%s", trouble)
        self.troubles = troubles


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
