# SPDX-License-Identifier: Apache-2.0
"""Instructions per packet of programs, held to their budgets.

    python -m tools.instructions                  load balancer and pods' bandwidth, all scenarios
    python -m tools.instructions --write          make what is measured the budgets
    python -m tools.instructions --against DIR    compare with another checkout, not with budgets

They are counted in a guest whose clock counts instructions, so that they come out the same on
every machine, however busy it is. Exit code 1: a scenario takes more than it may.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from tools.compilers import here
from tools.debian.archive import DownloadError
from tools.instructions import budgets, document, inside
from tools.instructions.budgets import Counts
from tools.kernels import guest
from tools.kernels.packages import Image, obtain
from tools.kernels.supported import named

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "6.12"
TIMEOUT_SECONDS = 600.0
# A guest has its own of these, and doesn't see the host's.
_HIDDEN = ("/tmp", "/run", "/dev", "/proc", "/sys", "/results")  # noqa: S108 - names, not used


class CountError(Exception):
    """Nothing could be counted."""


def compile_programs(tree: Path, target: Path) -> None:
    """Compile a checkout's programs by its own rules, whatever is compiled there already."""
    spec = importlib.util.spec_from_file_location("rules", tree / "hatch_build.py")
    if spec is None or spec.loader is None:
        raise CountError(f"{tree} is no checkout of Towpath")
    rules: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    target.mkdir()
    with redirect_stderr(StringIO()):  # the commands; what compilers say is not caught by this
        for source in sorted((tree / "bpf").glob("*/*.bpf.c")):
            rules.compile_bpf(source, target / f"{rules.object_name(source)}.bpf.o")


def count(tree: Path, image: Image, names: list[str], place: Path, clang: str) -> Counts:
    """Count the instructions of a checkout's programs, in a guest.

    ``place`` is an empty directory below the working directory.
    """
    objects, results = place / "objects", place / "results"
    compile_programs(tree, objects)
    command = ["env", f"PYTHONPATH={tree / 'src'}", sys.executable, inside.__file__]
    outcome = guest.run(
        image,
        [*command, str(objects), *names],
        results,
        timeout=TIMEOUT_SECONDS,
        emulation=guest.COUNTING,
    )
    if not outcome.ok:
        raise CountError(f"{tree}: {outcome.explained()}\n{outcome.output}".strip())
    return Counts.of(json.loads((results / inside.RESULT.name).read_text()), clang)


def count_all(trees: list[Path], kernel: str, names: list[str]) -> list[Counts]:
    """Count those of several checkouts, in guests beside each other."""
    for tree in trees:
        if not (tree / "src/towpath/objects/libtowpath_core.so").exists():
            raise CountError(f"{tree} is not built: run make objects in it")
        if any(tree.is_relative_to(each) for each in _HIDDEN) and tree != ROOT:
            raise CountError(f"a guest doesn't see {tree}: have it somewhere else")
    clang, image = here.version(), obtain(named(kernel))
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="instructions-", dir=build) as name,
        ThreadPoolExecutor(len(trees)) as pool,
    ):
        places = [Path(name) / str(number) for number in range(len(trees))]
        for place in places:
            place.mkdir()
        jobs = [
            pool.submit(count, tree, image, names, place, clang)
            for tree, place in zip(trees, places, strict=True)
        ]
        return [job.result() for job in jobs]


def check(found: Counts, *, partly: bool) -> int:
    """Hold them to their budgets; ``partly``: only some scenarios were measured."""
    budget = budgets.find(budgets.load(), found.place)
    if budget and partly:
        budget = budget.only(found.scenarios)
    print(budgets.compared(budget.scenarios if budget else {}, found.scenarios, "budget"))
    verdict = budgets.judge(budget, found)
    for line in verdict.grown:
        print(f"{'grown' if verdict.failed else 'grown, not binding'}: {line}")
    for line in verdict.shrunk:
        print(f"the budget can be lowered (WRITE=1): {line}")
    for line in verdict.not_binding:
        print(f"WARNING: NOTHING WAS CHECKED: {line}; {_REMEDY}")
    if verdict.failed:
        print(
            f"FAILED: more than {budgets.TOLERANCE:.0%} above the budget; make the program leaner,"
            " or accept it: make bench-check WRITE=1"
        )
    return int(verdict.failed)


_REMEDY = "to have them checked here too, write them where nothing has changed: WRITE=1"


def main() -> int:
    """Count, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tools.instructions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make what is measured the budgets")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with this checkout, which is built"
    )
    parser.add_argument(
        "--scenario", action="append", metavar="NAME", default=[], help="only this one"
    )
    parser.add_argument("--kernel", default=KERNEL, metavar="NAME", help=f"instead of {KERNEL}")
    options = parser.parse_args()
    if options.write and (options.scenario or options.against):
        parser.error("--write is for all scenarios, of this checkout")
    began = time.monotonic()
    other = [options.against.resolve()] if options.against else []
    try:
        *before, now = count_all([*other, ROOT], options.kernel, options.scenario)
    except (CountError, here.UnknownCompilerError, DownloadError, guest.GuestError) as error:
        print(f"nothing was counted: {error}", file=sys.stderr)
        return 1
    floors = ", ".join(f"{each:,.1f}" for each in sorted(set(now.floors.values())))
    print(f"Linux {now.kernel}, clang {now.clang}, floors {floors}")
    code = 0
    if before:
        print(budgets.compared(before[0].scenarios, now.scenarios, "against"))
    elif options.write:
        known = budgets.find(budgets.load(), now.place)
        print(budgets.compared(known.scenarios if known else {}, now.scenarios, "before"))
        budgets.accept(now)
        document.write(budgets.load())
    else:
        code = check(now, partly=bool(options.scenario))
    print(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
