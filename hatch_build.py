# SPDX-License-Identifier: Apache-2.0
"""Compiles what ships in the wheel: BPF objects and the native library.

Run by hatchling when a wheel or an editable install is built, and by hand as
``python hatch_build.py`` when only the objects are wanted. An object newer than
every source is left alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

# v3 has 32-bit jumps and arithmetic, both older than the oldest kernel supported
# (5.10). The debug sections (-g) are where BTF comes from.
BPF_FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror")
NATIVE_FLAGS = (
    *("-O2", "-g", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-std=gnu11", "-Wall", "-Wextra", "-Werror"),
)

# What programs of others include.
PUBLIC_HEADERS = "wildcard*.h"


class MissingToolError(Exception):
    """A program needed to compile the objects is not installed."""


def tool(name: str) -> str:
    """Path of a program, or MissingToolError saying which package has it."""
    found = shutil.which(name)
    if found is None:
        package = {"clang": "clang", "llvm-strip": "llvm"}[name]
        raise MissingToolError(
            f"{name} is needed to compile Towpath's BPF objects: install {package}"
        )
    return found


def run(*command: str) -> None:
    """Run a compiler; its own messages are the error."""
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def asm_headers() -> list[str]:
    """Where <asm/types.h> is: Debian keeps it apart for each architecture."""
    directory = Path(f"/usr/include/{platform.machine()}-linux-gnu")
    return ["-I", str(directory)] if directory.is_dir() else []


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file of this process's own that becomes target if the block succeeds."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        yield partial
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def stale(target: Path, sources: list[Path]) -> bool:
    """Whether target is absent or any source has changed since."""
    if not target.exists():
        return True
    made = target.stat().st_mtime_ns
    return any(source.stat().st_mtime_ns > made for source in sources)


def compile_bpf(source: Path, target: Path) -> None:
    """Compile one BPF program; DWARF is stripped, BTF stays."""
    with replacing(target) as partial:
        run(tool("clang"), *BPF_FLAGS, *asm_headers(), "-c", str(source), "-o", str(partial))
        run(tool("llvm-strip"), "-g", str(partial))


def compile_native(sources: list[Path], target: Path) -> None:
    """Compile the native library that Python loads through ctypes."""
    with replacing(target) as partial:
        run(tool("clang"), *NATIVE_FLAGS, *map(str, sources), "-o", str(partial))


def copy_headers(root: Path) -> None:
    """Put the headers that other people's programs include where they find them."""
    include = root / "src" / "towpath" / "objects" / "include" / "towpath"
    include.mkdir(parents=True, exist_ok=True)
    for source in sorted((root / "bpf").glob(PUBLIC_HEADERS)):
        target = include / source.name
        if stale(target, [source]):
            with replacing(target) as partial:
                shutil.copyfile(source, partial)


def compile_objects(root: Path) -> list[Path]:
    """Compile whatever is out of date below root; returns every object, sorted."""
    objects = root / "src" / "towpath" / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    copy_headers(root)
    rules = root / "hatch_build.py"
    headers = sorted((root / "bpf").glob("*.h"))
    targets = []
    for source in sorted((root / "bpf").glob("*.bpf.c")):
        target = objects / source.with_suffix(".o").name
        if stale(target, [source, rules, *headers]):
            compile_bpf(source, target)
        targets.append(target)
    natives = sorted((root / "native").glob("*.c"))
    if natives:
        target = objects / "libtowpath_core.so"
        shared = [*(root / "native").glob("*.h"), *(root / "bpf").glob("*abi.h")]
        if stale(target, [rules, *natives, *shared]):
            compile_native(natives, target)
        targets.append(target)
    return targets


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compile before the wheel is put together, and tag it for this machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; the native code in the wheel makes it one of this platform."""
        del version
        compile_objects(Path(self.root))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_")


if __name__ == "__main__":
    try:
        compile_objects(Path(__file__).resolve().parent)
    except MissingToolError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
