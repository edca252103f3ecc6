# SPDX-License-Identifier: Apache-2.0
"""A bare machine: a root, entered with namespaces of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bare import host, image

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMOVAL_SECONDS = 10.0
_ENTER = Path(__file__).with_name("enter")
# The kernel ends all of it when this process ends, however that does: setpriv has unshare killed,
# and unshare the first process of the namespace. The network stays this machine's, by which
# packages come in; Towpath's tests and its lab make network namespaces of their own.
_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
    *("--uts", "--ipc", "--"),
)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. ``code`` is None where it had not ended in time."""

    code: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One root on this machine's disk."""

    root: Path

    def run(self, command: str, log: Path, *, timeout: float) -> Ran:
        """Run a line of shell in it, from /root; what it says goes to ``log``."""
        shell = ["/bin/sh", "-c", f"cd /root && {command}"]
        began = time.monotonic()
        with (
            log.open("ab") as output,
            subprocess.Popen(
                [*_NAMESPACES, str(_ENTER), str(self.root), *shell],
                env=host.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
        return Ran(code, time.monotonic() - began)


@contextmanager
def machine(archive: Path, place: Path) -> Iterator[Machine]:
    """Set one up in a directory that does not exist yet, and remove it afterwards."""
    try:
        image.unpack(archive, place)
        yield Machine(place)
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    """Remove a root. Processes that have just been killed may still write to it for a moment."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while place.exists() and time.monotonic() < deadline:
        shutil.rmtree(place, ignore_errors=True)
        time.sleep(0.1)
    if place.exists():
        shutil.rmtree(place)  # and say why it can't be
