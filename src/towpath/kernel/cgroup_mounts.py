# SPDX-License-Identifier: Apache-2.0
"""The hierarchy of cgroups, where no path leads to it: mounted for oneself, opened by number.

Of a container, or of a node that is one, the root that it sees is a cgroup within the machine's.
Which is told by numbers: the machine's root has number 1, and the machine's cgroup namespace has
one that is the same on all.
"""

from __future__ import annotations

import errno as errnos
import os
import struct
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from towpath.closeable import Closeable
from towpath.kernel import _libc
from towpath.kernel.cgroup import OPEN
from towpath.kernel.errors import CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, KernelError, permission_hint

ROOT_ID = 1
"""The number of the machine's root."""
_KERNFS = 0xFE  # FILEID_KERNFS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INIT = 1


def namespace(process: int | str = "thread-self") -> int | None:
    """The number of a process's cgroup namespace; None: this one may not ask."""
    try:
        return Path(f"/proc/{process}/ns/cgroup").stat().st_ino
    except OSError:
        return None


def cgroup_of(process: int | str = "thread-self") -> str | None:
    """A process's cgroup, relative to this one's cgroup namespace: ``/..`` is what that is in.

    None: this process may not ask, or there is no version 2.
    """
    try:
        lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)


class Directory(Closeable):
    """A cgroup's directory that is held open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def path(self) -> Path:
        """A path to it, which leads there in this process and while it is open."""
        return OPEN / str(self._fd)

    @property
    def id(self) -> int:
        """Its number."""
        return os.fstat(self._fd).st_ino

    def by_id(self, number: int) -> Directory:
        """The cgroup of a number, wherever in the hierarchy it is. KernelError: there is none.

        It needs CAP_DAC_READ_SEARCH, and finds what is above this process's namespace, too.
        """
        handle = struct.pack("=Q", number)
        try:
            return Directory(_libc.open_by_handle(self._fd, _KERNFS, handle, _DIRECTORY))
        except OSError as error:
            hint = ""
            if error.errno == errnos.EPERM:
                hint = permission_hint(CAP_DAC_READ_SEARCH)
            elif error.errno == errnos.ESTALE:
                hint = "it is gone"
            raise KernelError(f"open cgroup number {number}", error.errno or 0, hint) from error

    def close(self) -> None:
        """Close it. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def opened_at(path: Path | str) -> Directory:
    """Open a cgroup's directory. KernelError."""
    try:
        return Directory(os.open(path, _DIRECTORY))
    except OSError as error:
        raise KernelError(f"open cgroup {path}", error.errno or 0) from error


def mounted(*, of_init: bool = False) -> Directory:
    """Mount the hierarchy for this process alone, at no path: gone when it is closed (5.2).

    What is mounted is the root of a cgroup namespace: this process's, or that of process 1 as it
    sees it. KernelError.
    """
    made: list[int | OSError] = []
    # A thread that has entered another namespace isn't used for anything else.
    thread = threading.Thread(target=_mount, args=(made, of_init))
    thread.start()
    thread.join()
    (found,) = made
    if isinstance(found, int):
        return Directory(found)
    number = found.errno or 0
    hint = permission_hint(CAP_SYS_ADMIN) if number in {errnos.EPERM, errnos.EACCES} else ""
    if number == errnos.ENODEV:
        hint = "this kernel has no cgroups of version 2"
    raise KernelError("mount the cgroups of version 2", number, hint) from found


def _mount(made: list[int | OSError], of_init: bool) -> None:  # noqa: FBT001 -- Thread's args
    try:
        with ExitStack() as undo:
            if of_init:
                other = os.open(f"/proc/{_INIT}/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, other)
                _libc.setns(other, _libc.CLONE_NEWCGROUP)
            mount = _libc.mount_detached("cgroup2")
            undo.callback(os.close, mount)
            made.append(os.open(".", _DIRECTORY, dir_fd=mount))
    except OSError as error:
        made.append(error)


def remove(path: Path) -> None:
    """Remove a cgroup that has no process any more; one that isn't there is fine. OSError."""
    with suppress(FileNotFoundError):
        path.rmdir()
