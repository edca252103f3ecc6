# SPDX-License-Identifier: Apache-2.0
"""Being told that files of a directory are written, renamed or removed (inotify)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.kernel import _libc

if TYPE_CHECKING:
    from pathlib import Path

# <linux/inotify.h>
_CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x8, 0xC0, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x1000000
_ROOM = 1 << 16


class DirectoryWatch(Closeable):
    """Tells when there may be something new in a directory, which needn't be there yet.

    What is above it is watched until it is. OSError: there can be no such watch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _libc.inotify()
        self._watching: tuple[Path, int] | None = None
        self.renew()

    def fileno(self) -> int:
        """The descriptor that is readable when something has changed."""
        return self._fd

    def drain(self) -> None:
        """Take in what was told."""
        with suppress(BlockingIOError):
            while len(os.read(self._fd, _ROOM)) >= _ROOM // 2:
                continue

    def renew(self) -> None:
        """Watch the directory, or the nearest one above that is there. Before each look into it."""
        nearest = next(each for each in (self._path, *self._path.parents) if each.is_dir())
        of = (nearest, nearest.stat().st_ino)
        if of == self._watching:
            return
        kinds = _MOVED | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
        # What is written is of interest once it is whole; what is above, when it is made.
        kinds |= _CLOSE_WRITE if nearest == self._path else _CREATE
        _libc.inotify_add(self._fd, nearest, kinds)
        self._watching = of

    def close(self) -> None:
        """End it. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
