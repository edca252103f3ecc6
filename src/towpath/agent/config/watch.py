# SPDX-License-Identifier: Apache-2.0
"""Notices that the configuration file changed.

By looking, twice a second, not by inotify: a stat costs microseconds and no
dependency, and it follows what inotify on the file does not see, which is how
configuration is really replaced: an editor's rename, a link that a Kubernetes
volume swaps, a file on NFS written elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

INTERVAL = 0.5  # seconds between looks


class Signature(NamedTuple):
    """What changes whenever a file's content does."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def signature(path: Path) -> Signature | None:
    """The file's signature, None when it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return Signature(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass
class Watch:
    """Whether a file has been replaced since it was last taken in.

    A file counts as changed when it differs from what was taken in and has looked
    the same twice: one that is still being written is left alone until it rests,
    so that the first half of a list of services is never taken for the whole.
    """

    path: Path
    _taken: Signature | None = field(init=False)
    _last: Signature | None = field(init=False)

    def __post_init__(self) -> None:
        self.taken()

    def taken(self) -> None:
        """What the file looks like now is known; call it before reading."""
        self._taken = self._last = signature(self.path)

    def changed(self) -> bool:
        """Look once. Call it every INTERVAL."""
        now = signature(self.path)
        settled = now == self._last
        self._last = now
        return settled and now is not None and now != self._taken
