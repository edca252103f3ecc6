# SPDX-License-Identifier: Apache-2.0
"""Network and mount namespaces, of one thread at a time."""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.kernel import _libc
from towpath.kernel.errors import CAP_SYS_ADMIN, KernelError, errno_name, permission_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = Path("/run/netns")  # where `ip netns` keeps them
_SO_NETNS_COOKIE = 71
_OWN = "/proc/thread-self/ns/net"


@contextmanager
def in_netns(where: str | Path | int) -> Iterator[None]:
    """Run the block in another network namespace: a name of ``ip netns``, a path or an open file.

    Only the calling thread moves. KernelError: there is no such namespace, or it can't be entered.
    """
    if isinstance(where, int):
        with _inside(where, f"network namespace of file descriptor {where}"):
            yield
        return
    with _opened(_path(where)) as fd, _inside(fd, f"network namespace {where}"):
        yield


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """As `in_netns`, but a thread that is in it needs no right to move. KernelError."""
    if os.path.samestat(os.fstat(fd), Path(_OWN).stat()):
        yield
        return
    with in_netns(fd):
        yield


class Home(Closeable):
    """The calling thread's network namespace, for whoever may be in another one later."""

    def __init__(self) -> None:
        self._fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block in it. A thread that is in it needs no right to move. KernelError."""
        with entered(self._fd):
            yield

    def close(self) -> None:
        """Let go of it. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Share(Closeable):
    """The calling thread's network namespace, shared with others who look after the same thing.

    ``first``: nobody else had it when this was made. A file lock on the namespace itself: it goes
    with the process, and needs no file.
    """

    def __init__(self) -> None:
        self._fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.first = True
        except BlockingIOError:
            self.first = False
            self.begun()

    def begun(self) -> None:
        """Let others in, once what the first one has to do is done. Twice is once."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Let go of it. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def new_netns() -> Iterator[int]:
    """Run the block in a network namespace of its own; gives an open file that stands for it.

    Only the calling thread moves. The namespace goes with the block, unless something else is in it
    by then. KernelError: it can't be made.
    """
    with _opened(_OWN) as home:
        unshare(network=True)
        try:
            with _opened(_OWN) as fd:
                yield fd
        finally:
            _libc.setns(home, _libc.CLONE_NEWNET)


def unshare(*, network: bool = False, mounts: bool = False) -> None:
    """Give the calling thread new namespaces, for good. KernelError.

    New mounts stay within the new mount namespace and aren't seen outside.
    """
    kinds = network * _libc.CLONE_NEWNET | mounts * _libc.CLONE_NEWNS
    try:
        _libc.unshare(kinds)
        if mounts:
            _libc.mount("none", "/", None, _libc.MS_REC | _libc.MS_PRIVATE)
    except OSError as error:
        raise _error("make new namespaces", error) from error


def netns_cookie() -> int | None:
    """The number that BPF programs know the calling thread's namespace by; None before 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            told = made.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return None
    return int.from_bytes(told, sys.byteorder)


def _path(where: str | Path) -> Path:
    path = Path(where) if "/" in str(where) else NAMED / where
    if not path.exists():
        there = sorted(each.name for each in NAMED.iterdir()) if NAMED.is_dir() else []
        hint = f"there are: {', '.join(there) or 'none'}"
        raise KernelError(f"open network namespace {where}", errnos.ENOENT, hint)
    return path


@contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _inside(fd: int, what: str) -> Iterator[None]:
    with _opened(_OWN) as home:
        try:
            _libc.setns(fd, _libc.CLONE_NEWNET)
        except OSError as error:
            raise _error(f"enter {what}", error) from error
        try:
            yield
        finally:
            _libc.setns(home, _libc.CLONE_NEWNET)


def _error(what: str, error: OSError) -> KernelError:
    number = error.errno or 0
    hint = permission_hint(CAP_SYS_ADMIN) if errno_name(number) == "EPERM" else ""
    return KernelError(what, number, hint)
