# SPDX-License-Identifier: Apache-2.0
"""The machines themselves: what runs in one is of that one, and nothing outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tools.bare import image
from tools.bare.machine import machine
from tools.debian.distributions import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import Callable

# Announces itself by a file in the root, leaves an orphan, and goes on.
LINGER = "(setsid sleep 1000 &) ; touch /srv/begun; sleep 1000"
RUN = """
import signal, sys
from pathlib import Path
from tools.bare.machine import machine
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
with machine(Path(sys.argv[1]), Path(sys.argv[2])) as made:
    made.run(sys.argv[3], Path(sys.argv[4]), timeout=100)
"""


@pytest.fixture(scope="module")
def archive() -> Path:
    """The first distribution's."""
    return image.obtain(SUPPORTED[0])


def inside(place: Path) -> list[Path]:
    """The processes that have something there as their root."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            root = process.joinpath("root").readlink()
            command = process.joinpath("cmdline").read_bytes()
        except OSError:
            continue
        if str(place).encode() in command or root.is_relative_to(place):
            found.append(process)
    return found


def test_a_machine_is_bare_and_a_machine(archive: Path, tmp_path: Path) -> None:
    """It has git, make and a name of its own, and not the programs that are around it."""
    log = tmp_path / "log"
    with machine(archive, tmp_path / "root") as made:
        line = "hostname; which git make python3 ip; mount --make-rprivate / && echo $$"
        assert made.run(line, log, timeout=60).code == 0
        name, git, make, number = log.read_text().splitlines()
        assert (name, git, make) == ("bare", "/usr/bin/git", "/usr/bin/make")
        assert int(number) < os.getpid()  # in a PID namespace: its shell is one of the first
        for code in (0, 7):
            assert made.run(f"exit {code}", log, timeout=60).code == code
        ran = made.run("sleep 1000", log, timeout=1)
        assert ran.code is None
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_nothing(
    archive: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """No process and no mount; the root itself only where nobody could have removed it."""
    root = tmp_path / "root"
    command = [sys.executable, "-c", RUN, str(archive), str(root), LINGER, str(tmp_path / "log")]
    with subprocess.Popen(command) as running:
        wait_for((root / "srv/begun").exists)
        running.send_signal(number)
    wait_for(lambda: not inside(root))
    assert str(root) not in Path("/proc/self/mounts").read_text()
    assert root.exists() == (number == signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
