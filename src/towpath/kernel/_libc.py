# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's os module doesn't have. All raise OSError."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

# From <asm/unistd.h>; the others have the number of AArch64, the generic one.
_MEMBARRIER = 324 if platform.machine() == "x86_64" else 283
_BPF = 321 if platform.machine() == "x86_64" else 280
# Newer ones have the same number everywhere.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_PIDFD_GETFD = 438  # on all
_STATFS_SIZE = 256  # twice what any 64-bit architecture has


def _checked(result: int, path: Path | str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else str(path))
    return result


def has_library(name: str) -> bool:
    """Whether the dynamic linker finds a library, such as libbpf.so.1."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into a namespace."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def unshare(kind: int) -> None:
    """Give the calling thread a new namespace."""
    _checked(_libc.unshare(ctypes.c_int(kind)))


def mount(source: str, target: Path | str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount a file system, or change a mount."""
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _checked(result, target)


def mount_detached(kind: str) -> int:
    """Mount a file system at no path: a file descriptor of its root, which is open for paths only.

    The mount goes with the last file that is open in it (5.2).
    """
    context = _checked(_libc.syscall(ctypes.c_long(_FSOPEN), kind.encode(), _FSOPEN_CLOEXEC))
    try:
        create = ctypes.c_int(_FSCONFIG_CMD_CREATE)
        _checked(_libc.syscall(ctypes.c_long(_FSCONFIG), context, create, None, None, 0))
        return _checked(_libc.syscall(ctypes.c_long(_FSMOUNT), context, _FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)


def open_by_handle(mount: int, kind: int, handle: bytes, flags: int) -> int:
    """Open a file of the file system that ``mount`` is open on, by the file system's own name."""
    record = struct.pack("=Ii", len(handle), kind) + handle
    buffer = ctypes.create_string_buffer(record, len(record))
    return _checked(_libc.open_by_handle_at(ctypes.c_int(mount), buffer, ctypes.c_int(flags)))


def inotify() -> int:
    """A file that tells what happens to directories."""
    return _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def inotify_add(fd: int, path: Path | str, mask: int) -> int:
    """Have IN_* of a directory told; the number by which they are."""
    return _checked(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)), path)


def umount(target: Path | str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def file_system_type(path: Path | str) -> int:
    """The magic number of the file system that ``path`` is on, 0 when there is no such path."""
    buffer = (ctypes.c_long * (_STATFS_SIZE // ctypes.sizeof(ctypes.c_long)))()
    if _libc.statfs(os.fsencode(path), buffer) < 0:
        return 0
    return int(buffer[0]) & 0xFFFFFFFF


def membarrier(command: int) -> int:
    """Order memory against the other CPUs, as by ``command``; a set of bits if that is a query."""
    return _checked(_libc.syscall(ctypes.c_long(_MEMBARRIER), ctypes.c_int(command), 0, 0))


def bpf(command: int, attr: ctypes.Structure) -> int:
    """Ask BPF itself: for what the oldest libbpf that is supported has no function or field."""
    size = ctypes.c_uint(ctypes.sizeof(attr))
    arguments = (ctypes.c_int(command), ctypes.byref(attr), size)
    return _checked(_libc.syscall(ctypes.c_long(_BPF), *arguments))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A descriptor of this process's own for what another one has open (5.6)."""
    arguments = (ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    return _checked(_libc.syscall(ctypes.c_long(_PIDFD_GETFD), *arguments))
