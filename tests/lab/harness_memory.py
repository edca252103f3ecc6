# SPDX-License-Identifier: Apache-2.0
"""Cgroups that limit the memory of what runs in them, of version 2 or 1, whichever has that."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.cgroup import mount_point
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS_V1 = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class Limited:
    """A cgroup with a limit."""

    path: Path
    peak_file: str

    def wrap(self, command: list[str]) -> list[str]:
        """Make of a command one that runs in here."""
        return ["sh", "-c", f'echo $$ >{self.path}/cgroup.procs && exec "$@"', "sh", *command]

    @property
    def peak(self) -> int | None:
        """The most bytes that were taken; None if this kernel doesn't tell (before Linux 5.19)."""
        with suppress(FileNotFoundError):
            return int((self.path / self.peak_file).read_text())
        return None

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed here."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(FileNotFoundError):
                fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
                return int(fields["oom_kill"])
        raise FileNotFoundError(self.path)


@contextmanager
def limited(most: int) -> Iterator[Limited]:
    """Make one of so many bytes. It has to be empty at the end, but for what is ending.

    Skips the test where memory can't be limited, as in a container that may not make cgroups.
    """
    with ExitStack() as undo:
        try:
            root, limit, peak = _hierarchy(undo)
            path = root / f"towpath-test-memory-{os.getpid()}"
            path.mkdir()
        except OSError as error:
            pytest.skip(f"memory can't be limited here: {error}")
        undo.callback(wait_until, lambda: _removed(path), seconds=60, what=f"{path} to be empty")
        (path / limit).write_text(str(most))
        yield Limited(path, peak)


def _hierarchy(undo: ExitStack) -> tuple[Path, str, str]:
    with suppress(KernelError):
        root = mount_point()
        if "memory" in (root / "cgroup.controllers").read_text().split():
            control = root / "cgroup.subtree_control"
            if "memory" not in control.read_text().split():
                control.write_text("+memory")
                undo.callback(control.write_text, "-memory")
            return root, "memory.max", "memory.peak"
    return _CGROUPS_V1, "memory.limit_in_bytes", "memory.max_usage_in_bytes"


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True
