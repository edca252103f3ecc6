# SPDX-License-Identifier: Apache-2.0
"""The compiler that this machine has."""

from __future__ import annotations

import re
import subprocess


class UnknownCompilerError(Exception):
    """It doesn't say what it is."""


def version() -> str:
    """Return the full version of the clang that is first on PATH."""
    said = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"clang version (\d+[.\d]*)", said)
    if found is None:
        raise UnknownCompilerError(f"clang doesn't say its version, but: {said.splitlines()[0]}")
    return found.group(1)
