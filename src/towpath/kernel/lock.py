# SPDX-License-Identifier: Apache-2.0
"""One process at a time on a state directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator


_SHOWN = 200


@contextmanager
def exclusive(directory: Path | str, *, wait: bool = False) -> Iterator[None]:
    """Hold a directory's lock in the block; it goes with the process, however that ends.

    KernelError: another process has it (unless ``wait``), or there is no such directory.
    """
    what = f"lock {directory}"
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(what, error.errno or 0) from error
    try:
        _lock(fd, what, wait=wait)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, what: str, *, wait: bool) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        owner = _owner(fd)
        hint = f"process {owner} has it{_described(owner)}" if owner else "another process has it"
        raise KernelError(what, error.errno or 0, hint) from error


def _described(process: int) -> str:
    """What a process is, as far as that can be seen."""
    directory = Path("/proc", str(process))
    try:
        words = (directory / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        user = directory.stat().st_uid
    except OSError:
        return ""
    command = b" ".join(words).decode(errors="replace")
    # Whoever has started it may have named it anything.
    return f" ({command[:_SHOWN]!a} of user {user})"


def _owner(fd: int) -> int | None:
    """The process that holds the lock, by /proc/locks; None when it isn't in our PID namespace."""
    inode = str(os.fstat(fd).st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        # 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode and int(fields[4]) > 0:
            return int(fields[4])
    return None
