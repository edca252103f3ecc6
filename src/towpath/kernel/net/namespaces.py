# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by their inodes, which is all that the kernel tells of a socket's."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel import _libc
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import entered, in_netns, netns_cookie

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PROC = Path("/proc")
_MOUNTS = Path("/proc/thread-self/mountinfo")
_ROOT, _MOUNT_POINT = 3, 4  # fields of a line of mountinfo, proc(5)
_SIOCGSKNS = 0x894C
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Namespaces:
    """The network namespaces that are mounted, that a process is in, or has open, or a socket of.

    Looked for when one isn't known, first where most are.
    """

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}

    @contextmanager
    def entered(self, inode: int) -> Iterator[None]:
        """Run the block in one; only the calling thread moves. KernelError: it isn't found."""
        fd = self._open(inode)
        try:
            with in_netns(fd):
                yield
        finally:
            os.close(fd)

    def _open(self, inode: int) -> int:
        for look in (dict, _of_processes, _of_threads_and_files):
            self._paths |= look()
            if (fd := _opened(self._paths.get(inode), inode)) is not None:
                return fd
        for found, fd in _of_sockets():
            if found == inode:
                return os.dup(fd)
        raise KernelError(f"find network namespace {inode}", hint="no process is in it")


def namespaces() -> list[Path]:
    """A path for each network namespace but the caller's own, as far as they can be seen.

    A namespace that nothing but an open file keeps isn't found.
    """
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    return [path for inode, path in _of_processes().items() if inode != own]


def with_cookies(wanted: Collection[int]) -> Iterator[tuple[int | None, int]]:
    """The namespaces that programs know by these numbers: number and descriptor, each once.

    A descriptor holds until the next is asked for. It is looked first where most are, and no
    further than until all are found. One that can't be seen or entered, or has gone, doesn't come.
    Before Linux 5.14 the kernel doesn't tell which is which: then all come, without a number.
    """
    missing, seen, told = set(wanted), set[int](), netns_cookie() is not None
    for inode, fd in _all() if missing else ():
        if inode not in seen:
            seen.add(inode)
            if not told:
                yield None, fd
                continue
            cookie = _cookie_of(fd)
            if cookie in missing:
                yield cookie, fd
                missing.discard(cookie)
        if not missing:
            return


def _cookie_of(fd: int) -> int:
    """A namespace's number, 0 if it can't be entered, or the kernel doesn't tell."""
    try:
        with entered(fd):
            return netns_cookie() or 0
    except KernelError:
        return 0


def _all() -> Iterator[tuple[int, int]]:
    """All by inode and a descriptor, as `_of_sockets`."""
    for look in (_of_processes, _of_threads_and_files):
        for inode, path in look().items():
            fd = _opened(path, inode)
            if fd is None:
                continue
            try:
                yield inode, fd
            finally:
                os.close(fd)
    yield from _of_sockets()


def _opened(path: Path | None, inode: int) -> int | None:
    """A descriptor of the namespace, if it still is the one of that inode."""
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(fd).st_ino == inode:
        return fd
    os.close(fd)
    return None


def _of_processes() -> dict[int, Path]:
    found = dict(_mounted())
    for path in _PROC.glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found.setdefault(path.stat().st_ino, path)
    return found


def _mounted() -> Iterator[tuple[int, Path]]:
    """As `ip netns` and container runtimes keep them."""
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split(" ")
        root, point = fields[_ROOT], fields[_MOUNT_POINT]
        if root.startswith("net:["):
            path = _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), point)
            yield int(root[5:-1]), Path(path)


def _of_threads_and_files() -> dict[int, Path]:
    """Those of single threads, and those that are only held open: there may be very many files."""
    found: dict[int, Path] = {}
    for path in (*_PROC.glob("[0-9]*/task/*/ns/net"), *_PROC.glob("[0-9]*/fd/*")):
        with suppress(OSError, ValueError):
            target = path.readlink().name
            if target.startswith("net:["):
                found.setdefault(int(target[5:-1]), path)
    return found


def _of_sockets() -> Iterator[tuple[int, int]]:
    """Those that sockets are in, by inode and a descriptor that holds until the next is asked for.

    A namespace may come several times.
    """
    for path in _PROC.glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if not path.readlink().name.startswith("socket:["):
                continue
            fd = _namespace_of(int(path.parts[2]), int(path.name))
            try:
                yield os.fstat(fd).st_ino, fd
            finally:
                os.close(fd)


def _namespace_of(pid: int, fd: int) -> int:
    """A descriptor of the network namespace of a process's socket. OSError."""
    with ExitStack() as undo:
        process = os.pidfd_open(pid)
        undo.callback(os.close, process)
        copy = _libc.pidfd_getfd(process, fd)
        undo.callback(os.close, copy)
        return fcntl.ioctl(copy, _SIOCGSKNS)
