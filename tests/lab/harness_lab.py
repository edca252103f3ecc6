# SPDX-License-Identifier: Apache-2.0
"""What a lab could leave behind, and how to run the command that makes one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.lab import LabError, namespaces
from towpath.lab.state import DIRECTORY
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TOWPATH = [sys.executable, "-m", "towpath"]


def leftovers() -> list[str]:
    """Whatever there is of a lab: namespaces, mounts, files, processes, devices."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        *(f"namespace {name}" for name in namespaces.existing() if name.startswith("tp-")),
        *(f"mount {line}" for line in mounts if str(DIRECTORY) in line),
        *([f"directory {DIRECTORY}"] if DIRECTORY.exists() else []),
        *(f"process {line}" for line in _command_lines() if _is_ours(line)),
        *(f"device {name}" for _, name in socket.if_nameindex() if name.startswith("tp")),
    ]


def _command_lines() -> list[str]:
    """Of every process below this one that has not ended."""
    parents, lines = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        parents[process.name] = parent
        lines[process.name] = command.replace(b"\0", b" ").decode(errors="replace")
    return [line for process, line in lines.items() if str(os.getpid()) in _above(process, parents)]


def _above(process: str, parents: dict[str, str]) -> Iterator[str]:
    while (process := parents.get(process, "")) != "":
        yield process


def _is_ours(line: str) -> bool:
    return str(DIRECTORY) in line or "towpath.lab.keeper" in line


def assert_nothing_left() -> None:
    """Fail, naming what there is, unless all of it goes."""
    # A process that has been killed keeps its command line until it has been reaped.
    with suppress(LabError):
        wait_until(lambda: not leftovers(), seconds=120, what="the lab to go")
    assert leftovers() == []


def towpath(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a towpath command to its end."""
    command = [*TOWPATH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a towpath command."""
    command = [*TOWPATH, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
