# SPDX-License-Identifier: Apache-2.0
"""A directory for what a run keeps on disk, and control groups of the same name.

A run that was killed can't remove them. The next one does: whoever lives holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT = Path("/var/tmp/towpath-kubernetes")  # noqa: S108 - each run's own, made by mkdir
CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "towpath-kube-"


@contextmanager
def directory() -> Iterator[Path]:
    """A new one, which only this run uses; removed at the end with control groups of its name."""
    PARENT.mkdir(mode=0o700, exist_ok=True)
    sweep()
    path = PARENT / f"{_PREFIX}{secrets.token_hex(4)}"
    # Nobody takes it for a dead run's between its making and its locking.
    with _locked(PARENT / "lock"):
        path.mkdir(mode=0o755)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        remove(path)
        os.close(lock)


def sweep() -> None:
    """Remove what runs that were killed have left."""
    with _locked(PARENT / "lock"):
        for path in PARENT.glob(f"{_PREFIX}*"):
            with (path / "lock").open("a") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)


def remove(path: Path) -> None:
    """Remove a run's directory and control groups. KubernetesError: something lives in them."""
    for each in cgroups(path.name):
        remove_cgroup(each)
    shutil.rmtree(path)


def cgroups(name: str) -> list[Path]:
    """Control groups of that name, or beginning with it and a dash, in each hierarchy."""
    found = [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(f"*/{name}-*")]
    # Where this process isn't at a hierarchy's root, they are below its own group.
    return found + [each for own in own_cgroups() for each in own.glob(f"{name}*")]


def own_cgroups() -> list[Path]:
    """Where this process is, in each hierarchy that is mounted."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = CGROUPS / (controllers.removeprefix("name=") or "unified")
        if mounted.exists() and path != "/":
            found.append(mounted / path.lstrip("/"))
    return found


def remove_cgroup(path: Path, seconds: float = 10.0) -> None:
    """Remove a control group and what is below it, once its processes have ended."""
    limit = time.monotonic() + seconds
    while path.exists():
        for below in sorted(path.rglob("*"), reverse=True):
            if below.is_dir():
                with suppress(OSError):
                    below.rmdir()
        try:
            path.rmdir()
        except OSError as error:
            if time.monotonic() > limit:
                lives = (path / "cgroup.procs").read_text().split()
                raise KubernetesError(f"{path}: {error.strerror}; processes: {lives}") from None
            time.sleep(0.05)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
