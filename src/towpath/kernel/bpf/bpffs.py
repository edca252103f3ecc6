# SPDX-License-Identifier: Apache-2.0
"""The BPF file system, where maps, programs and links stay when no process holds them."""

from __future__ import annotations

import errno as errnos
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from towpath.kernel import _libc
from towpath.kernel.bpf.libbpf import check, lib
from towpath.kernel.errors import CAP_BPF, CAP_SYS_ADMIN, KernelError, errno_name, permission_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/bpf")
_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8

Kind = Literal["map", "prog", "link"]


def is_bpffs(path: Path | str) -> bool:
    """Whether ``path`` exists and is on a BPF file system."""
    return _libc.file_system_type(path) == _MAGIC


def ensure_bpffs(path: Path | str = ROOT) -> Path:
    """Mount a BPF file system at ``path`` unless it is on one already; returns the path.

    The mount belongs to the caller's mount namespace. KernelError: it can't be mounted.
    """
    path = Path(path)
    if is_bpffs(path):
        return path
    what = f"mount a BPF file system at {path}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        _libc.mount("bpf", path, "bpf", _MS_NOSUID_NODEV_NOEXEC, "mode=0700")
    except OSError as error:
        hint = permission_hint(CAP_SYS_ADMIN) if error.errno in (1, 13) else ""
        raise KernelError(what, error.errno or 0, hint) from error
    return path


@contextmanager
def new_pin_dir(target: Path | str) -> Iterator[Path]:
    """A temporary directory that becomes ``target`` when the block succeeds.

    Pins made in it appear all together, under the final name. When the block fails they are all
    removed. FileExistsError: there is a ``target`` already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    temporary = target.with_name(f"{target.name}-new-{os.getpid()}")
    remove_pins(temporary)  # of a process with this number that was killed half-way
    temporary.mkdir(parents=True, mode=0o700)
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        remove_pins(temporary)
        raise


def remove_pins(directory: Path | str) -> None:
    """Remove a directory of pins with all that is in it; none is fine."""
    directory = Path(directory)
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_pins(entry)
        else:
            entry.unlink()
    directory.rmdir()


def pin(fd: int, path: Path | str, what: str) -> None:
    """Give the object behind ``fd`` a name in a BPF file system. KernelError."""
    result = lib.bpf_obj_pin(fd, os.fsencode(path))
    if result < 0:
        raise KernelError(f"pin {what} at {path}", -result, _pin_hint(Path(path), -result))


def _pin_hint(path: Path, number: int) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no directory {parent}"
    if not is_bpffs(parent):
        return f"{parent} is not on a BPF file system"
    if "." in path.name:
        return "the kernel allows no dot in a name there"
    if errno_name(number) == "EEXIST":
        return "that name is taken"
    return permission_hint(CAP_BPF) if errno_name(number) == "EPERM" else ""


def open_pin(path: Path | str, kind: Kind) -> int:
    """Open what is pinned at ``path``. KernelError: it isn't there, or isn't a ``kind``."""
    fd, found = _open(path, kind)
    if found != kind:
        os.close(fd)
        raise KernelError(f"open pinned {kind} {path}", hint=f"a {found} is pinned there")
    return fd


def kind_of_pin(path: Path | str) -> str:
    """What is pinned at ``path``: "map", "prog" or "link". KernelError: nothing is."""
    fd, found = _open(path, "object")
    os.close(fd)
    return found


def pins(root: Path = ROOT) -> Iterator[tuple[Path, str, int]]:
    """Yield what is pinned below a directory: path, kind, and a file descriptor until the next.

    Without what this process may not open, and what goes meanwhile.
    """
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if path.is_symlink():
                continue
            try:
                fd, kind = _open(path, "object")
            except KernelError:
                continue
            try:
                yield path, kind, fd
            finally:
                os.close(fd)


def _open(path: Path | str, wanted: str) -> tuple[int, str]:
    fd: int = lib.bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise KernelError(f"open pinned {wanted} {path}", -fd, _open_hint(Path(path), -fd))
    # Such as anon_inode:bpf-map or anon_inode:bpf_link.
    return fd, str(Path(f"/proc/self/fd/{fd}").readlink()).rpartition("bpf")[2][1:]


def _open_hint(path: Path, number: int) -> str:
    if not path.exists():
        on_bpffs = is_bpffs(path.parent) or not path.parent.exists()
        return "" if on_bpffs else f"{path.parent} is not on a BPF file system"
    return permission_hint(CAP_BPF) if errno_name(number) == "EPERM" else ""


def check_id(fd: int, kind: str, number: int) -> int:
    """``fd``, unless looking up an id failed: then KernelError."""
    hint = permission_hint(CAP_SYS_ADMIN) if fd == -errnos.EPERM else ""
    return check(fd, f"open {kind} with id {number}", hint)
