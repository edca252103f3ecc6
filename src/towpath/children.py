# SPDX-License-Identifier: Apache-2.0
"""Python in child processes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return a command that runs a module of this package with this interpreter.

    It finds modules where this process does, but for the working directory: ``python -m`` would
    import from there first, and somebody else may be able to write to it.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def expendable() -> None:
    """For a child: be the first that the kernel kills when memory runs out, not the parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
