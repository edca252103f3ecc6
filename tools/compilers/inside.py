# SPDX-License-Identifier: Apache-2.0
"""Compiles a checkout in another root, by the rules that it is always compiled by.

Usage: inside.py ROOT DIRECTORY CHECKOUT [SOURCE]...

DIRECTORY is where the compiler's programs are, in that root; further sources are of tests.

There is no Python in the root: it is this process that goes there, with all that it needs. What is
compiled is a copy of the sources that has the checkout's own path there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hatch_build import compile_objects
from tests.unit.kernel.harness_clang import kept


def main(root: str, programs: str, checkout: str, *sources: str) -> None:
    """Compile what ships, and then these."""
    os.chroot(root)
    os.chdir(checkout)
    os.environ |= {"PATH": f"{programs}:/usr/bin:/bin", "TMPDIR": "/tmp"}  # noqa: S108 - the root's
    compile_objects(Path(checkout))
    for source in map(Path, sources):
        kept(source)


if __name__ == "__main__":
    main(*sys.argv[1:])
