# SPDX-License-Identifier: Apache-2.0
"""Compiles Towpath with the oldest and the newest clang that users may have.

    python -m tools.compilers              both, and what is newer than all that are supported
    python -m tools.compilers --ci         only those that must not fail
    python -m tools.compilers --fresh      with compilers that are fetched anew
    python -m tools.compilers --write      and write the table in docs/install.md

Each is unpacked from its own release of Debian, with the headers that there are. What the newest
has made is loaded by `make kernels`. Exit code 0: all that must not fail are well.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from tools.compilers import build, document
from tools.compilers.supported import NEWEST, SUPPORTED
from tools.debian.archive import DownloadError

if TYPE_CHECKING:
    from tools.compilers.build import Made
    from tools.compilers.supported import Compiler

_AT_ONCE = 2
_UNAVAILABLE = """\
This clang can't be had, and none was unpacked here before. It is the archive's trouble and says
nothing of Towpath. Run it again when the archive is mended; where it has no such clang any more,
name another in tools/compilers/supported.py."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What kept a compiler from making anything."""

    compiler: Compiler
    told: str


def attempt(compiler: Compiler, *, fresh: bool) -> Made | Failure:
    """Have one compile all."""
    try:
        return build.make(compiler, fresh=fresh)
    except build.CompileError as error:
        return Failure(compiler, f"FAILED:\n{error}")
    except DownloadError as error:
        return Failure(compiler, f"NOTHING WAS TRIED:\n{error}\n{_UNAVAILABLE}")


def show(result: Made | Failure) -> None:
    """Print what came of one compiler."""
    title = result.compiler.title
    if isinstance(result, Failure):
        news = "" if result.compiler.blocking else " (not blocking)"
        print(f"{title}{news}: {result.told}".replace("\n", "\n  "))
        return
    print(
        f"{title}: ok, {result.seconds:.0f} s: {result.objects} objects by clang {result.clang}"
        f" with the headers of libbpf {result.libbpf} and Linux {result.headers}"
    )
    if result.warning:
        print(f"  WARNING: this clang is {result.warning}".replace("\n", "\n  "))


def newer(results: list[Made | Failure]) -> Compiler | None:
    """Return a compiler that is newer than all that are supported, if there is one."""
    known = [made.newest for made in results if not isinstance(made, Failure)]
    major = max([NEWEST.major, *known])
    untried = replace(NEWEST, major=major, loaded=False, blocking=False)
    return untried if major > NEWEST.major else None


def main() -> int:
    """Compile all."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compilers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ci", action="store_true", help="only those that must not fail")
    parser.add_argument("--fresh", action="store_true", help="fetch the compilers anew")
    parser.add_argument("--write", action="store_true", help="write the table in docs/install.md")
    options = parser.parse_args()

    began = time.monotonic()
    one = partial(attempt, fresh=options.fresh)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = list(pool.map(one, SUPPORTED))
    if next_one := newer(results):
        print(f"{next_one.title} is newer than all in tools/compilers/supported.py")
        results += [] if options.ci else [one(next_one)]
    for result in results:
        show(result)
    failed = [each for each in results if isinstance(each, Failure)]
    blocking = [each for each in failed if each.compiler.blocking]
    if options.write and not blocking:
        document.write(each for each in results if not isinstance(each, Failure))
    print(f"{time.monotonic() - began:.0f} s in all")
    print(f"compilers: {len(results) - len(failed)} passed, {len(blocking)} failed")
    return int(bool(blocking))


if __name__ == "__main__":
    sys.exit(main())
