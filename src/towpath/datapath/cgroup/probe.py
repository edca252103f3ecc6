# SPDX-License-Identifier: Apache-2.0
"""A process in a cgroup of its own, below another, that connects: what is attached should see it.

UDP, so that nothing is sent: the kernel runs programs at connect() before it looks for a route. The
address is one of the loopback's that is drawn each time.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.cgroup import cgroup_id, opened
from towpath.kernel.cgroup_mounts import mounted, remove
from towpath.kernel.errors import CAP_DAC_OVERRIDE, KernelError, permission_hint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "towpath-probe-"
"""What the cgroup is called, and a number."""
SECONDS = 60
"""It ends what hangs, such as a cgroup that is frozen; else it takes some hundredths of one."""
_READ_ONLY = "it is mounted to be read only; a service of systemd's needs ProtectControlGroups=no"
_TRIES, _PAUSE = 200, 0.01
_LOOPBACK = int(IPv4Address("127.0.0.0"))
# The socket is made once the process has been moved: it belongs to where it was made.
_CHILD = """
import socket, sys
sys.stdin.readline()
with socket.socket(socket.{family}, socket.SOCK_DGRAM) as probe:
    try:
        probe.connect(({address!r}, {port}))
    except OSError:
        pass
"""


class Destination(NamedTuple):
    """Where the process connects to, by UDP."""

    address: str
    """IPv4 or IPv6."""
    port: int

    @classmethod
    def drawn(cls) -> Destination:
        """One that nobody has been told of: an address of 127/8, a port that can be reached."""
        address = IPv4Address(_LOOPBACK + 1 + secrets.randbelow((1 << 24) - 2))
        return cls(str(address), 1 + secrets.randbelow(65535))


def connect_below(path: Path, destination: Destination) -> None:
    """Have a process connect in a new cgroup below ``path``. KernelError: it can't be put there."""
    with new_cgroup(path) as below:
        family = "AF_INET6" if ":" in destination.address else "AF_INET"
        code = _CHILD.format(family=family, **destination._asdict())
        # -I and -S: what is installed is nothing to it, and it starts in a hundredth of a second.
        command = [sys.executable, "-I", "-S", "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            try:
                _move(child.pid, below)
                child.communicate(b"\n", SECONDS)
            except BaseException as error:
                child.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    what = f"connect in {below}"
                    hint = f"not done after {SECONDS} s: is it frozen, or without CPU?"
                    raise KernelError(what, hint=hint) from error
                raise


def _move(process: int, path: Path) -> None:
    try:
        (path / "cgroup.procs").write_text(str(process))
    except OSError as error:
        number = error.errno or 0
        hint = "a threaded cgroup takes no process" if number == errnos.EOPNOTSUPP else ""
        raise KernelError(f"move a process to {path}", number, hint) from error


@contextmanager
def new_cgroup(path: Path) -> Iterator[Path]:
    """Make a cgroup below another for the block. KernelError: there can't be one."""
    with ExitStack() as undo:
        try:
            _remove_forgotten(path)
            made = _make(path)
        except KernelError as error:
            if error.errno != errnos.EROFS:
                raise
            writable = _writable(path, undo)
            _remove_forgotten(writable)
            made = _make(writable)
        undo.callback(_end, made)
        # For as long as there is a lock on it, there is somebody who has it.
        fd = undo.enter_context(opened(made))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made


def _writable(path: Path, undo: ExitStack) -> Path:
    """Another way to a cgroup whose mount may only be read: a mount of one's own need not be so."""
    try:
        mount = undo.enter_context(mounted())
        number = cgroup_id(path)
        return mount.path if mount.id == number else undo.enter_context(mount.by_id(number)).path
    except KernelError as error:
        what, hint = f"make a cgroup in {path}", f"{_READ_ONLY}; or else: {error}"
        raise KernelError(what, errnos.EROFS, hint) from error


def _make(path: Path) -> Path:
    made = path / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        made.mkdir()
    except OSError as error:
        number = error.errno or 0
        hints = {
            errnos.EROFS: _READ_ONLY,
            # The hierarchy's root may be written by nobody, root included.
            errnos.EACCES: permission_hint(CAP_DAC_OVERRIDE),
            errnos.EAGAIN: "cgroup.max.descendants or cgroup.max.depth allows no more",
            errnos.ENOENT: "it is gone",
        }
        raise KernelError(f"make a cgroup in {path}", number, hints.get(number, "")) from error
    return made


def _remove_forgotten(path: Path) -> None:
    """Remove what was left by one that was killed."""
    for each in path.glob(f"{PREFIX}*"):
        with suppress(OSError, KernelError), opened(each) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(each)


def _end(path: Path) -> None:
    """Remove a probe's cgroup; what can't be is left to the next one.

    The process may still be on its way out for a moment (6.19).
    """
    for _ in range(_TRIES):
        try:
            return remove(path)
        except OSError as error:
            if error.errno != errnos.EBUSY:
                return None
            time.sleep(_PAUSE)
    return None
