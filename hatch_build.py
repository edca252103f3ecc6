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

# What programs of others include, below <towpath/>, and where it is in bpf/.
PUBLIC_HEADERS = {"wildcard.h": "wildcard/wildcard.h", "abi/wildcard.h": "abi/wildcard.h"}


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


def object_name(source: Path) -> str:
    """Return an object's name: lb of lb/lb.bpf.c, bench_forward of bench/forward.bpf.c."""
    folder, stem = source.parent.name, source.name.removesuffix(".bpf.c")
    return stem if stem == folder else f"{folder}_{stem}"


def compile_bpf(source: Path, target: Path) -> None:
    """Compile one BPF program of bpf/CAPABILITY/; DWARF is stripped, BTF stays."""
    include = ("-I", str(source.parents[1]), *asm_headers())
    with replacing(target) as partial:
        run(tool("clang"), *BPF_FLAGS, *include, "-c", str(source), "-o", str(partial))
        run(tool("llvm-strip"), "-g", str(partial))


def compile_native(root: Path, sources: list[Path], target: Path) -> None:
    """Compile the native library that Python loads through ctypes."""
    include = ("-I", str(root / "native"), "-I", str(root / "bpf"))
    with replacing(target) as partial:
        run(tool("clang"), *NATIVE_FLAGS, *include, *map(str, sources), "-o", str(partial))


def copy_headers(root: Path) -> None:
    """Put the headers that other people's programs include where they find them."""
    include = root / "src" / "towpath" / "objects" / "include" / "towpath"
    for name, place in PUBLIC_HEADERS.items():
        source, target = root / "bpf" / place, include / name
        if source.exists() and stale(target, [source]):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                shutil.copyfile(source, partial)


def compile_objects(root: Path) -> list[Path]:
    """Compile whatever is out of date below root; returns every object, sorted."""
    objects = root / "src" / "towpath" / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    copy_headers(root)
    rules = root / "hatch_build.py"
    headers = sorted((root / "bpf").rglob("*.h"))
    targets = []
    for source in sorted((root / "bpf").glob("*/*.bpf.c")):
        target = objects / f"{object_name(source)}.bpf.o"
        if stale(target, [source, rules, *headers]):
            compile_bpf(source, target)
        targets.append(target)
    for old in set(objects.glob("*.bpf.o")) - set(targets):
        old.unlink()  # of a source that is gone or has another name
    natives = sorted((root / "native").rglob("*.c"))
    if natives:
        target = objects / "libtowpath_core.so"
        shared = [*(root / "native").rglob("*.h"), *(root / "bpf" / "abi").glob("*.h")]
        if stale(target, [rules, *natives, *shared]):
            compile_native(root, natives, target)
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
