# SPDX-License-Identifier: Apache-2.0
"""Control groups of version 2, the only ones that programs are attached to: where they are.

A machine has one hierarchy of them. Distributions mount it at /sys/fs/cgroup, or, where the
controllers are still those of version 1, at /sys/fs/cgroup/unified; others at a place of their own.
"""

from __future__ import annotations

import errno as errnos
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel import _libc
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = 0x63677270  # CGROUP2_SUPER_MAGIC
_MAGIC_V1 = 0x27E0EB  # CGROUP_SUPER_MAGIC
# Of the thread, which may be in a mount namespace of its own.
_MOUNTS = Path("/proc/thread-self/mountinfo")
_FILE_SYSTEMS = Path("/proc/filesystems")
_KIND = "cgroup2"
OPEN = Path("/proc/self/fd")
"""Below it is what this process has open, also where that has no path of its own."""
_USUAL = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_ROOT, _MOUNT_POINT = 3, 4  # fields of a line of mountinfo, proc(5)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def is_cgroup(path: Path | str) -> bool:
    """Whether ``path`` exists and is a cgroup of version 2."""
    return _libc.file_system_type(path) == _MAGIC and Path(path).is_dir()


def mount_point() -> Path:
    """Where the hierarchy is mounted: its root, as far as this process sees it.

    At one of the usual places if it is there, else at the first mount of all of it, else of a part.
    KernelError: nowhere.
    """
    found = mounts()
    if not found:
        known = f"\t{_KIND}\n" in _FILE_SYSTEMS.read_text()
        mounted = "it is mounted nowhere here: mount -t cgroup2 none /sys/fs/cgroup/unified"
        hint = mounted if known else "this kernel has none (CONFIG_CGROUPS)"
        raise KernelError("find the cgroups of version 2", hint=hint)
    whole = [point for root, point in found if root == "/"] or [point for _, point in found]
    return Path(next((each for each in _USUAL if each in whole), whole[0]))


def mounts() -> list[tuple[str, str]]:
    """What is mounted of the hierarchy, and where, as far as this process can get there.

    The first is relative to its cgroup namespace: ``/..`` is what that is in.
    """
    return [(root, point) for root, point, _ in mounts_of(_KIND) if is_cgroup(point)]


def mounts_of(kind: str) -> Iterator[tuple[str, str, str]]:
    """What is mounted of a kind of file system, where, and with which options of its own."""
    for line in _MOUNTS.read_text().splitlines():
        mount, _, after = line.partition(" - ")
        file_system, _, options = after.split(" ", 2)
        if file_system == kind:
            fields = mount.split(" ")
            yield fields[_ROOT], _ESCAPE.sub(_character, fields[_MOUNT_POINT]), options


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def cgroup_id(path: Path | str) -> int:
    """The number that the kernel has for a cgroup, and for no other since boot. KernelError."""
    with opened(path) as fd:
        return os.fstat(fd).st_ino


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """A cgroup's directory, open for the block. KernelError: ``path`` is no cgroup."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open cgroup {path}", error.errno or 0) from error
    try:
        _check(path, fd)
        yield fd
    finally:
        os.close(fd)


def _check(path: Path | str, fd: int) -> None:
    found = _libc.file_system_type(f"/proc/self/fd/{fd}")
    if found != _MAGIC:
        version = " of version 2, but of version 1" if found == _MAGIC_V1 else ""
        hint = f"it is no cgroup{version}; those are at {mount_point()}"
        raise KernelError(f"open cgroup {path}", errnos.EBADF, hint)


def lineage(path: Path | str) -> Iterator[Path]:
    """Yield a cgroup and those that it is in, up to the root of what is mounted."""
    # By a file descriptor, what is mounted at no path has a name all the same.
    path = Path(path) if OPEN in Path(path).parents else Path(path).resolve()
    device = path.stat().st_dev
    for each in (path, *path.parents):
        if not is_cgroup(each) or each.stat().st_dev != device:
            return
        yield each
