# SPDX-License-Identifier: Apache-2.0
"""Has a compiler make everything that it would make for a user."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.prog.lb import told
from tests.unit.kernel import harness_clang
from tools.compilers import atomics, inside
from tools.compilers.root import obtained
from tools.compilers.supported import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from tools.compilers.root import Root
    from tools.compilers.supported import Compiler

SOURCES = ("bpf", "native", "hatch_build.py")
_RULES = (Path(__file__), Path(inside.__file__), Path(harness_clang.__file__))
_SAID = 4000
"""Characters of a compiler's messages that are shown: their beginning."""


class CompileError(Exception):
    """A compiler doesn't take Towpath, or what it makes can't be used."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a compiler has made."""

    compiler: Compiler
    clang: str
    """Versions of clang, of libbpf's headers, and of the kernel's."""
    libbpf: str
    headers: str
    objects: int
    seconds: float
    newest: int
    """The newest major of clang in the same archive."""
    warning: str
    """Why the compiler may not be the archive's newest; empty: it is, as of this week."""


def make(compiler: Compiler, *, fresh: bool = False) -> Made:
    """Compile all into ``compiler.made``, unless it is there already.

    ``fresh``: with a compiler that is fetched anew. CompileError: it can't. DownloadError: there is
    no such compiler to be had.
    """
    began = time.monotonic()
    with obtained(compiler, fresh=fresh) as root:
        digest = _digest(root)
        report = read(compiler)
        if report.get("digest") != digest:
            report = _compile(compiler, root, digest)
    return Made(
        compiler,
        **{key: report[key] for key in ("clang", "libbpf", "headers", "objects")},
        seconds=time.monotonic() - began,
        newest=root.newest,
        warning=root.trouble and f"of {root.days:.0f} days ago, for the archive: {root.trouble}",
    )


def read(compiler: Compiler) -> dict[str, Any]:
    """Return what was noted when a compiler made what is there; empty: nothing is."""
    path = compiler.made / "report.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _digest(root: Root) -> str:
    """What stands for a compilation: its sources, its rules, and the compiler's packages."""
    made = hashlib.sha256(json.dumps(root.versions, sort_keys=True).encode())
    for path in sorted([*_files(ROOT), *told.SOURCES.values(), *_RULES]):
        made.update(f"{path}\0".encode() + path.read_bytes())
    return made.hexdigest()


def _files(tree: Path) -> Iterator[Path]:
    for name in SOURCES:
        yield from (path for path in (tree / name, *(tree / name).rglob("*")) if path.is_file())


def _compile(compiler: Compiler, root: Root, digest: str) -> dict[str, Any]:
    shutil.rmtree(compiler.made, ignore_errors=True)
    new = compiler.made.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    # On kernels whose test runs don't say where a frame came in, tests have programs of their own.
    more = list(told.SOURCES.values()) if compiler.loaded else []
    with compiled(compiler, root, ROOT, more) as place:
        objects = _take(place / "src/towpath/objects", new / "objects", "*.bpf.o")
        _take(place / "build/tests", new / "kept", "*.o")
    check_atomics(objects)
    report = {"digest": digest, "objects": len(objects)} | versions(compiler, root)
    (new / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    new.rename(compiler.made)
    return report


def versions(compiler: Compiler, root: Root) -> dict[str, str]:
    """Return upstream's versions of what matters."""
    named = {"clang": f"clang-{compiler.major}", "libbpf": "libbpf-dev"}
    named["headers"] = "linux-libc-dev"
    return {name: upstream(root.versions[package]) for name, package in named.items()}


@contextmanager
def compiled(
    compiler: Compiler, root: Root, tree: Path, more: Collection[Path] = ()
) -> Iterator[Path]:
    """Copy a checkout's sources into the root and compile them; yield where they are then.

    ``more``: sources of tests. CompileError: the compiler doesn't take them.
    """
    place = root.path / tree.relative_to("/")
    try:
        for path in (*_files(tree), *more):
            target = root.path / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _run_inside(compiler, root, tree, *more)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run_inside(compiler: Compiler, root: Root, *paths: Path) -> None:
    programs = f"/usr/lib/llvm-{compiler.major}/bin"
    command = [sys.executable, "-m", inside.__name__, str(root.path), programs, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(_messages(done.stderr, programs))


def _messages(said: str, programs: str) -> str:
    """What the last command says: those before it went well."""
    lines = said.partition("Traceback (most recent call last)")[0].splitlines()
    begins = [at for at, line in enumerate(lines) if line.startswith(programs)]
    return "\n".join(lines[begins[-1] + 1 :] if begins else said.splitlines())[:_SAID]


def _take(source: Path, target: Path, pattern: str) -> list[Path]:
    target.mkdir(parents=True)
    return [Path(shutil.copy(each, target)) for each in sorted(source.glob(pattern))]


def check_atomics(objects: Iterable[Path]) -> None:
    """Look for what the oldest kernel would refuse. CompileError: there is some."""
    for each in objects:
        if each.name not in atomics.MEANT and (count := atomics.fetching_in(each)):
            raise CompileError(
                f"{each.name} has {count} atomic instructions that fetch what was there before."
                " Linux 5.10 has none: record_add_one() in bpf/recorder/record.h does without"
            )


def upstream(version: str) -> str:
    """Return a package's version without what Debian adds to it."""
    return re.sub(r"^\d+:|-[^-]*$", "", version)
