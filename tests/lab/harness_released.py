# SPDX-License-Identifier: Apache-2.0
"""The released version, as the repository's history has it, built once and kept below build/."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.unit.kernel.harness_clang import KEPT, ROOT

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "77261e6"
SCHEMA = 3
"""Of its state database."""
PARTS = ("src", "bpf", "native", "hatch_build.py")
# File, text, text instead. libbpf 1.7's headers define likely and unlikely themselves.
EDITS = (
    ("bpf/parse.h", "#define likely(x) ", "#undef likely\n#undef unlikely\n#define likely(x) "),
)


def released() -> Path:
    """The released version's sources and objects. Skips the test where history lacks it."""
    if (reason := _lacking()) is not None:
        pytest.skip(f"the released version can't be had: {reason}")
    digest = hashlib.sha256(repr((COMMIT, PARTS, EDITS)).encode()).hexdigest()[:16]
    found = KEPT / f"released-{digest}"
    if not found.exists():
        making = KEPT / f"{found.name}.{os.getpid()}"
        try:
            _build(making)
            making.rename(found)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return found


def _lacking() -> str | None:
    """Why there is no history that goes back so far; None: there is."""
    if shutil.which("git") is None:
        return "git is not installed"
    asked = _git("cat-file", "-e", f"{COMMIT}^{{commit}}")
    return asked.stderr.decode().strip() if asked.returncode else None


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Ask this repository, whichever one a hook of git's that runs this is about."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=alone, capture_output=True, check=False)


def _build(directory: Path) -> None:
    directory.mkdir(parents=True)
    archive = _git("archive", COMMIT, *PARTS)
    archive.check_returncode()
    subprocess.run(["tar", "x", "-C", str(directory)], input=archive.stdout, check=True)
    for name, old, new in EDITS:
        text = (directory / name).read_text()
        assert text.count(old) == 1, (name, old)
        (directory / name).write_text(text.replace(old, new))
    subprocess.run([sys.executable, "hatch_build.py"], cwd=directory, check=True)
