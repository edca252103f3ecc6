# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, and the processes that live in them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from select import poll
from typing import TYPE_CHECKING, Any

from pyroute2 import netns

from towpath.kernel.net.netns import in_netns
from towpath.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = Path("/run/netns")

# A server that has been asked to stop and has not after so long is killed.
STOP_TIMEOUT = 5.0


def existing() -> set[str]:
    """Names of the namespaces there are, anyone's."""
    return set(netns.listnetns(str(DIRECTORY)))


def create(name: str) -> None:
    """Make a namespace; LabError if there is one of that name."""
    if name in existing():
        raise LabError(f"a network namespace {name} already exists, and this lab did not make it")
    netns.create(name)


def remove(name: str) -> None:
    """Remove a namespace and so its devices; one that is not there is no error."""
    if name in existing():
        netns.remove(name)


def spawn(name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a command in a namespace; options as for Popen.

    A child inherits the namespace of the thread that forks it, so no helper program
    is needed in between. The child leads a session of its own: an interrupt typed
    at the terminal reaches the lab, which stops things in their order.
    """
    with in_netns(name):
        return subprocess.Popen(command, text=True, start_new_session=True, **options)


def run(name: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace to its end; options as for subprocess.run."""
    with in_netns(name):
        return subprocess.run(command, text=True, check=False, **options)


def processes(name: str) -> list[int]:
    """Processes that live in a namespace, this one excepted."""
    try:
        wanted = (DIRECTORY / name).stat()
    except FileNotFoundError:
        return []
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            there = (process / "ns" / "net").stat()
        except OSError:  # it has ended meanwhile, or is a kernel thread's
            continue
        if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def stop_processes(name: str) -> None:
    """Ask every process in a namespace to stop, then make it; return when they have."""
    for number, patience in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, STOP_TIMEOUT)):
        watched = [fd for pid in processes(name) if (fd := _signal(pid, number)) is not None]
        for fd in watched:
            _wait(fd, patience)


def _signal(pid: int, number: signal.Signals) -> int | None:
    """Signal a process; a pidfd that tells of its end, or None if it has ended."""
    try:
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return None
    return fd


def _wait(fd: int, seconds: float) -> None:
    waiting = poll()
    waiting.register(fd)
    waiting.poll(seconds * 1000)
    os.close(fd)
