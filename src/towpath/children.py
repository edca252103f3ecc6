# SPDX-License-Identifier: Apache-2.0
"""Python in child processes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

# The package is this one, whichever others are installed. What else is beside it hides nothing.
_START = """\
import runpy, sys
_, path, root, module, *arguments = sys.argv
sys.argv[1:] = arguments
sys.path[:] = [root, *path.split(":")]
import towpath
sys.path.append(sys.path.pop(0))
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return a command that runs a module of this package with this interpreter, isolated.

    ``python -m`` would import from the working directory first, where somebody else may be able to
    write. Modules are found where this process finds them, but for there.
    """
    root = str(Path(__file__).absolute().parents[1])
    path = ":".join(_search_path())
    return (sys.executable, "-I", "-c", _START, path, root, module, *arguments)


def _search_path() -> list[str]:
    """Where this process imports from, without what the working directory is to thank for."""
    named = os.environ.get("PYTHONPATH", "").split(":")
    here = ""
    with suppress(OSError):  # it may have been removed
        here = str(Path.cwd())
    absolute = [each for each in sys.path if Path(each).is_absolute()]
    return [each for each in absolute if each != here or here in named]


def expendable() -> None:
    """For a child: be the first that the kernel kills when memory runs out, not the parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
