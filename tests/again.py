# SPDX-License-Identifier: Apache-2.0
"""Runs pytest, and what has failed once more, alone.

    python -m tests.again ARGUMENT...       pytest's

Some of thousands of tests share with the whole machine what can't be had apart: its CPUs, the root
of its cgroups, its clock. A few failures may be of that, and pass with nobody beside them; they are
told by name, and are faults of a test to be mended. Many failures are the code's, and aren't tried
again. Nor is any with TOWPATH_ONCE set.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 3
"""As many failures are run again."""
ALONE = ("-n", "0", "--last-failed")
_FAILED = 1
"""pytest's exit code for that and nothing else."""


def run(
    arguments: Sequence[str],
    alone: Sequence[str] = (),
    output: IO[str] | None = None,
) -> tuple[int, list[str]]:
    """Run pytest with ``arguments``, and with ``alone`` besides when it is run again.

    Returns its exit code, and the names of those that failed at first and passed then.
    """
    with TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={directory}", *arguments]
        code = _ended(command, output)
        failed = _failed(Path(directory))
        if code != _FAILED or not 0 < len(failed) <= MOST or os.environ.get("TOWPATH_ONCE"):
            return code, []
        print(f"failed, and run again alone: {', '.join(failed)}", file=output, flush=True)
        code = _ended([*command, *ALONE, *alone], output)
    if code == 0:
        print(f"passed only when run again: {', '.join(failed)}", file=output, flush=True)
    return code, [] if code else failed


def _ended(command: Sequence[str], output: IO[str] | None) -> int:
    """Run a command to its end, and return its exit code.

    Whoever interrupts this interrupts that, once: it has yet to undo what its tests have made. So
    it is in a process group of its own, which Ctrl-C in a terminal doesn't reach.
    """
    errors = subprocess.STDOUT if output else None
    with subprocess.Popen(command, stdout=output, stderr=errors, process_group=0) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)


def _failed(cache: Path) -> list[str]:
    """What pytest has noted: names of tests, and of modules that can't be imported."""
    noted = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(noted.read_text())) if noted.exists() else []


if __name__ == "__main__":
    # Who was begun in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(sys.argv[1:])[0])
