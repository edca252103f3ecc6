# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix: boots each supported kernel and runs Towpath's tests in it.

    python -m tools.kernels                     all kernels, everything
    python -m tools.kernels --kernel 6.1        one of them
    python -m tools.kernels --ci                what CI runs
    python -m tools.kernels --suite compilers   only what the newest compiler has made
    python -m tools.kernels --write             and write docs/kernels.md and the accepted sizes

Exit code 0: all blocking kernels are well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tests import guests
from tests.prog.lb.harness_layout import compile_versions
from tests.unit.kernel.harness_clang import kept
from tools.compilers import build, here
from tools.compilers.supported import NEWEST
from tools.debian.archive import DownloadError
from tools.kernels import document, growth, guest, inside
from tools.kernels.packages import obtain
from tools.kernels.share import Share, shares
from tools.kernels.supported import SUPPORTED, Kernel, Suite, named

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# One each for the three that must not fail. A guest keeps one CPU busy: with two CPUs three at a
# time are through no later than two and then one, and none of them idles meanwhile.
AT_ONCE = 3
TIMEOUT_SECONDS = 3600.0
CI_SECONDS = 450.0
PAGE = Path("docs/kernels.md")
_SAID = 5000
"""Characters of a guest's output that are shown where something went wrong: its end."""


@dataclass
class Result:
    """What came of one kernel."""

    kernel: Kernel
    seconds: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    """Empty: all is well."""
    notes: list[str] = field(default_factory=list)
    """What was not checked."""


def prepare() -> None:
    """Compile here what would be compiled in the guests, where it takes minutes."""
    for source in sorted(Path("tests").resolve().rglob("*.bpf.c")):
        kept(source)
    compile_versions()
    # Python too: whatever else the environment says, the guests find the bytecode.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    collect = ["pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *inside.TESTS.values()]
    for module in (["compileall", "-q", "src"], collect):
        subprocess.run(
            [sys.executable, "-m", *module],
            env=environment | {"TOWPATH_GUEST": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )


def compile_newest() -> str:
    """Have the newest compiler make what guests load; return what has kept it from that."""
    try:
        build.make(NEWEST)
    except (build.CompileError, DownloadError) as error:
        return str(error)
    return ""


def clang_versions() -> dict[str, str | None]:
    """Return of each list of programs in a guest's report what has made them."""
    return {"programs": here.version(), "newest": build.read(NEWEST).get("clang")}


def run_kernel(
    kernel: Kernel,
    results: Path,
    share: Share | None,
    *,
    suites: Collection[str],
    timeout: float,
) -> Result:
    """Boot one kernel and run those of its suites in it that are asked for.

    ``share``: what it runs of their tests; None: all. ``timeout``: in seconds, for all of it.
    """
    result = Result(kernel)
    began = time.monotonic()
    shutil.rmtree(results, ignore_errors=True)  # what an earlier run has left
    try:
        image = obtain(kernel)
        without = [f"--ignore={path}" for path in kernel.without]
        wanted = [suite for suite in kernel.suites if suite in suites]
        chosen = share.arguments() if share else []
        command = [sys.executable, "-m", "tools.kernels.inside", *wanted, *chosen, *without]
        outcome = guest.run(image, command, results, timeout=timeout)
    except (DownloadError, guest.GuestError) as error:
        result.troubles.append(str(error))
        return result
    finally:
        result.seconds = time.monotonic() - began
    report = results / "report.json"
    if report.exists():
        result.report = json.loads(report.read_text())
        result.report |= {"seconds": result.seconds, "shared": share is not None}
        result.report["clang"] = clang_versions()
        if again := result.report.get("again"):
            result.notes.append(f"passed only when run again: {', '.join(again)}")
        result.notes += [f"not tried, no time was left: {one}" for one in result.report["untried"]]
    if not outcome.ok:
        result.troubles.append(outcome.explained())
    result.troubles += troubles_of(result.report, outcome, results)
    return result


def troubles_of(report: dict[str, Any], outcome: guest.Outcome, results: Path) -> list[str]:
    """Return what a guest's report says that isn't well."""
    tests = results / "tests.txt"
    said = tests.read_text(errors="replace")[-_SAID:] if tests.exists() else ""
    if not report:
        return [each for each in (outcome.output[-_SAID:], said) if each]
    loaded = [*report.get("programs", ()), *report.get("newest", ())]
    found = [each["refused"] for each in loaded if "refused" in each]
    counts = [ran["counts"] for ran in report["suites"].values()]
    # There may have been no time for one of the suites, but for all?
    idle = counts and not any(each.get("passed") for each in counts)
    if idle or any(each.get("failed") or not each for each in counts):
        found.append(said)
    return found


def check_growth(result: Result) -> None:
    """Note the programs that have grown since their sizes were accepted."""
    name, accepted = result.kernel.name, growth.accepted()
    for clang, now in document.sizes(result.report).items():
        before = accepted.get(clang, {}).get(name)
        if before is None:
            result.notes.append(f"no sizes are accepted of what {clang} makes: none was checked")
        else:
            result.troubles += growth.grown(f"{name}, {clang}", before, now)


def loaded(report: dict[str, Any]) -> str:
    """Return how many programs a kernel has taken, of which compilers."""
    counts = [
        f"{sum('program' in each for each in programs)} by clang {version}"
        for version, programs in document.loaded(report).items()
    ]
    return f"programs loaded: {', '.join(counts) or 0}"


def show(result: Result) -> None:
    """Print what came of one kernel."""
    suites = result.report.get("suites", {})
    ran = "; ".join(f"{name} {document.counted(each)}" for name, each in suites.items())
    state = "FAILED" if result.troubles else "ok"
    if result.troubles and not result.kernel.blocking:
        state = "failed (not blocking)"
    name = result.report.get("release", result.kernel.name)
    print(f"{name}: {state}, {result.seconds:.0f} s: {loaded(result.report)}; {ran}")
    for trouble in (*result.notes, *result.troubles):
        print(f"  {trouble}".replace("\n", "\n  "))


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels", description=__doc__)
    parser.add_argument("--kernel", action="append", metavar="NAME", help="only this one")
    parser.add_argument(
        "--ci",
        action="store_true",
        help="only those that must not fail, which share the tests of programs among them",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="accept the sizes of programs, and if all suites are run write the page",
    )
    parser.add_argument(
        "--suite", action="append", metavar="NAME", choices=get_args(Suite), help="only this one"
    )
    parser.add_argument(
        "--within",
        type=float,
        default=CI_SECONDS,
        metavar="SECONDS",
        help="with --ci: no test is begun later (default %(default).0f)",
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep what the guests say")
    return parser.parse_args()


def run_all(
    kernels: list[Kernel], suites: Collection[str], options: argparse.Namespace
) -> list[Result]:
    """Boot all kernels, beside each other."""
    with tempfile.TemporaryDirectory(prefix="towpath-kernels-") as directory:
        places = [
            (options.results or Path(directory)).resolve() / kernel.name for kernel in kernels
        ]
        own: Sequence[Share | None] = [None] * len(kernels)
        seconds = TIMEOUT_SECONDS
        if options.ci and len(kernels) > 1:
            seconds = options.within + inside.TEST_SECONDS
            own = shares(kernels, suites, options.within)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            run = partial(run_kernel, suites=suites, timeout=seconds)
            return list(pool.map(run, kernels, places, own))


def main() -> int:
    """Run the matrix."""
    options = arguments()
    kernels = [named(name) for name in options.kernel or ()] or list(SUPPORTED)
    if options.ci:
        kernels = [kernel for kernel in kernels if kernel.blocking]
    suites = set(options.suite or get_args(Suite))

    began = time.monotonic()
    prepare()
    trouble = compile_newest() if "compilers" in suites else ""
    if trouble:
        suites.remove("compilers")
    results = run_all(kernels, suites, options)
    for result in results:
        if not options.write:
            check_growth(result)
        show(result)
    if options.write:
        write([result for result in results if result.report], whole=not options.suite)
    failed = sum(bool(result.troubles) for result in results if result.kernel.blocking)
    print(f"{time.monotonic() - began:.0f} s in all")
    print(f"kernels: {len(results) - failed} passed, {failed} failed")
    if trouble:
        print(f"{NEWEST.title}: FAILED, and no kernel has loaded what it makes: {trouble}")
    return int(failed > 0 or bool(trouble))


def write(results: list[Result], *, whole: bool) -> None:
    """Accept the sizes of programs; of ``whole`` runs write the page, and note what tests cost."""
    found: growth.Accepted = {}
    for result in results:
        for clang, sizes in document.sizes(result.report).items():
            found.setdefault(clang, {})[result.kernel.name] = sizes
    growth.accept(found)
    if not whole:
        return
    PAGE.write_text(document.page({r.kernel.name: r.report for r in results}))
    # What one test module takes, where it was run by itself or with all others.
    known = guests.costs()
    for result in results:
        known |= result.report["costs"]
    known = {module: seconds for module, seconds in known.items() if Path(module).exists()}
    guests.COSTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
