# SPDX-License-Identifier: Apache-2.0
"""Being told that cgroups, or the mounts that lead to them, have changed."""

from __future__ import annotations

import os
import select
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.kernel import _libc
from towpath.kernel.cgroup import is_cgroup
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

# <linux/inotify.h>
_CREATE, _DELETE, _MOVED = 0x100, 0x200, 0xC0
_IGNORED, _OVERFLOW, _ONLYDIR, _ISDIR = 0x8000, 0x4000, 0x1000000, 0x40000000
_EVENT = struct.Struct("iIII")
_ROOM = 1 << 16
_MOUNTS = "/proc/thread-self/mountinfo"


class Watch(Closeable):
    """What happens to a cgroup, to those directly in it, and to mounts. KernelError.

    Others may mount the hierarchy at other places: it is the same to them. Made and asked in one
    mount namespace.
    """

    def __init__(self, path: Path, ignore: str) -> None:
        """``ignore``: what names of cgroups begin with that are of no interest."""
        self._ignore, self._name = ignore.encode(), path.name.encode()
        self._above = -1
        try:
            with ExitStack() as undo:
                self._mounts = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, self._mounts)
                self._events = _libc.inotify()
                undo.callback(os.close, self._events)
                mask = _DELETE | _MOVED | _ONLYDIR
                _libc.inotify_add(self._events, path, mask | _CREATE)
                # A cgroup's own inode doesn't tell that it has been removed.
                if is_cgroup(path.parent):
                    self._above = _libc.inotify_add(self._events, path.parent, mask)
                self._undo = undo.pop_all()
        except OSError as error:
            raise KernelError(f"watch cgroup {path}", error.errno or 0) from error

    def register(self, poll: select.poll) -> None:
        """Have a poll wake up when there is something to be asked for."""
        poll.register(self._events, select.POLLIN)
        # By its poll the kernel tells of each change of mounts once.
        poll.register(self._mounts, select.POLLPRI)

    def unregister(self, poll: select.poll) -> None:
        """The contrary."""
        poll.unregister(self._events)
        poll.unregister(self._mounts)

    def changed(self, woken: dict[int, int]) -> bool:
        """Whether something has, by what the poll has told: files and events."""
        mounts = bool(woken.get(self._mounts))
        cgroups = any(self._told(*each) for each in self._read())
        return mounts or cgroups

    def _told(self, watch: int, mask: int, name: bytes) -> bool:
        if mask & (_IGNORED | _OVERFLOW):
            return True
        if watch == self._above:
            return name == self._name
        return bool(mask & _ISDIR) and not name.startswith(self._ignore)

    def _read(self) -> list[tuple[int, int, bytes]]:
        found = []
        try:
            data = os.read(self._events, _ROOM)
        except BlockingIOError:
            return []
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            found.append((watch, mask, data[at : at + length].rstrip(b"\0")))
            at += length
        return found

    def close(self) -> None:
        """End it. Twice is once."""
        self._undo.close()
