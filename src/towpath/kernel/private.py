# SPDX-License-Identifier: Apache-2.0
"""Directories that nobody else can open: who can may hold their lock, and keep others out."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

MODE = 0o700
_OTHERS_OPEN = 0o066


def make_private(directory: Path, is_ours: Callable[[str], bool] = lambda _: True) -> None:
    """Make a directory for its owner only, and what it is in as usual. OSError.

    One that is there is closed to others if it is this user's and all of ``is_ours`` what it
    holds. Otherwise it is left as it is, and logged: others may need to get at what is in there.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=MODE)
    except FileExistsError:
        _close(directory, is_ours)


def _close(directory: Path, is_ours: Callable[[str], bool]) -> None:
    found = directory.stat()
    if not found.st_mode & _OTHERS_OPEN:
        return
    # It may be mounted: a pod has the node's.
    if found.st_uid == os.geteuid() and all(is_ours(each.name) for each in directory.iterdir()):
        directory.chmod(MODE)
        log.info("%s has been closed to other users, who could have held its lock", directory)
    else:
        log.warning(
            "%s can be opened by other users, who can hold its lock: chmod go-rw it", directory
        )
