# SPDX-License-Identifier: Apache-2.0
"""BPF objects made by the compiler while the tests run."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
# Where Debian and its derivatives keep <asm/types.h>.
ARCHITECTURE_HEADERS = f"/usr/include/{platform.machine()}-linux-gnu"


def compile_bpf(source: Path | str, output: Path, *flags: str) -> Path:
    """Compile a C file, or C itself, to a BPF object with BTF."""
    is_file = isinstance(source, Path)
    options = ["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", *flags]
    includes = ["-idirafter", ARCHITECTURE_HEADERS, "-I", str(ROOT / "bpf")]
    files = ["-x", "c", "-c", str(source) if is_file else "-", "-o", str(output)]
    subprocess.run(
        ["clang", *options, *includes, *files],
        input=None if is_file else str(source),
        text=True,
        check=True,
    )
    return output
