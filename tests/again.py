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
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT if output else None, check=False
        ).returncode
        failed = _failed(Path(directory))
        if code != _FAILED or not 0 < len(failed) <= MOST or os.environ.get("TOWPATH_ONCE"):
            return code, []
        print(f"failed, and run again alone: {', '.join(failed)}", file=output, flush=True)
        code = subprocess.run(
            [*command, *ALONE, *alone],
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            check=False,
        ).returncode
    if code == 0:
        print(f"passed only when run again: {', '.join(failed)}", file=output, flush=True)
    return code, [] if code else failed


def _failed(cache: Path) -> list[str]:
    """What pytest has noted: names of tests, and of modules that can't be imported."""
    noted = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(noted.read_text())) if noted.exists() else []


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:])[0])
