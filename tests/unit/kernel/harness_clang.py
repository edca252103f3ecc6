# SPDX-License-Identifier: Apache-2.0
"""BPF objects made by the compiler while the tests run."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from towpath.kernel.bpf.object import OBJECTS

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "build" / "tests"
# Where Debian and its derivatives keep <asm/types.h>.
ARCHITECTURE_HEADERS = f"/usr/include/{platform.machine()}-linux-gnu"


def compile_bpf(source: Path | str, output: Path, *flags: str) -> Path:
    """Compile a C file, or C itself, to a BPF object with BTF."""
    shutil.copyfile(kept(source, *flags), output)
    return output


def kept(source: Path | str, *flags: str) -> Path:
    """What a compilation makes, compiled only once: it stays below build/.

    An emulated guest, where compiling takes a minute, finds there what its host has made.
    """
    text = source.read_text() if isinstance(source, Path) else source
    options = ["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", *flags]
    # From the file itself where there is one: its name is in what the verifier says.
    where = str(source) if isinstance(source, Path) else "-"
    found = KEPT / f"{_digest(text, where, *options)}.o"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        includes = ["-idirafter", ARCHITECTURE_HEADERS, "-I", str(ROOT / "bpf")]
        includes += ["-I", str(OBJECTS / "include")]
        making = found.with_suffix(f".{os.getpid()}")
        files = ["-x", "c", "-c", where, "-o", str(making)]
        subprocess.run(["clang", *options, *includes, *files], input=text, text=True, check=True)
        making.rename(found)
    return found


def _digest(*of: str) -> str:
    """What stands for a compilation: its input, and whatever it might include of ours."""
    made = hashlib.sha256("\0".join(of).encode())
    for path in sorted((ROOT / "bpf").rglob("*.[ch]")):
        made.update(path.read_bytes())
    return made.hexdigest()[:32]
