# SPDX-License-Identifier: Apache-2.0
"""`towpath bench bandwidth` in guests, where there are fq, CAKE and BBR, beside its rivals.

    python -m tools.kernels.bench                        some limits, in about half an hour
    python -m tools.kernels.bench --full                 all, in about two hours
    python -m tools.kernels.bench -- --part latency      what `towpath bench bandwidth` takes
    python -m tools.kernels.bench --figure               only a socket's own pace, and its picture

Results are written to docs/results, and tables of them to docs/performance.md. Where options after
-- choose, only what they ask for is replaced there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.debian.archive import DownloadError
from tools.kernels import bench_document, figure, guest, rivals
from tools.kernels.packages import obtain
from tools.kernels.supported import named

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path("docs/results")
KERNEL, RESET = "6.12", "5.10"
"""Kernels: the one that is measured, and one that resets stamps on the way from a pod."""
RATES, SOME = ("10M", "20M", "50M", "100M"), ("10M", "50M")
TIMEOUT_SECONDS = 4 * 3600.0
EMULATION = replace(guest.COUNTING, boot_seconds=900.0)
"""A guest's time is what it has done: what else the machine does has no say in what is measured,
and only in how long that takes."""
STAMPS = ("--part", "stamps")


class BenchFailedError(Exception):
    """A guest hasn't measured."""


def measure(
    kernel: str, words: list[str], place: Path, benchmark: str = "bandwidth"
) -> dict[str, Any]:
    """Have a kernel measure, with these options; its report. BenchFailedError, GuestError."""
    image = obtain(named(kernel))
    command = [sys.executable, "-m", "tools.kernels.bench_inside", benchmark, *words]
    outcome = guest.run(image, command, place, timeout=TIMEOUT_SECONDS, emulation=EMULATION)
    if not outcome.ok:
        raise BenchFailedError(f"{kernel}: {outcome.explained()}\n{outcome.output[-5000:]}")
    found: dict[str, Any] = json.loads((place / f"{benchmark}.json").read_text())
    return found


def turns(*, full: bool) -> Iterator[list[str]]:
    """Options of what a guest measures, one after the other: each leaves results.

    What programs cost is no matter of this clock: `make bench-check`.
    """
    rates, more = (RATES, ()) if full else (SOME, ("--runs", "1"))
    for rate in rates:
        for part in ("accuracy", "latency"):
            yield ["--part", part, "--rate", rate, *more]
    yield ["--part", "fairness", "--rate", rates[-1]]


def plugins() -> list[str]:
    """Return the options that name the CNI plugins."""
    found = map(rivals.obtain, rivals.RELEASES)
    return [word for version, path in found for word in ("--cni", f"cni-{version}={path}")]


def results(kernel: str) -> Path:
    """Return where a kernel's results are."""
    return RESULTS / f"bandwidth-{kernel}.json"


def keep(found: dict[str, Any], kernel: str) -> Path:
    """Write results, in place of those of the same parts and limits."""
    RESULTS.mkdir(exist_ok=True)
    path = results(kernel)
    before = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(merged(before, found), indent=1) + "\n")
    partial.rename(path)
    return path


def merged(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return results with others in place of those that they are of."""
    made = before | found
    for part in ("accuracy", "latency", "fairness"):
        rows = found.get(part, [])
        of = {_of(row) for row in rows}
        every = [row for row in before.get(part, []) if _of(row) not in of] + rows
        if every:
            made[part] = sorted(every, key=lambda row: (row["rate"], row.get("flows", 0)))
    return made


def _of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("way", "rate", "traffic", "flows", "small"))


def main() -> int:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.bench", description=__doc__)
    parser.add_argument("--kernel", default=KERNEL, metavar="NAME", help=f"instead of {KERNEL}")
    parser.add_argument("--full", action="store_true", help="all limits")
    parser.add_argument("--figure", action="store_true", help="only the picture")
    parser.add_argument("words", nargs="*", metavar="OPTION", help="of towpath bench bandwidth")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="towpath-kernels-bench-") as name:
        try:
            if not options.figure:
                chosen = [options.words] if options.words else turns(full=options.full)
                for number, words in enumerate(chosen):
                    place = Path(name) / str(number)
                    found = measure(options.kernel, words + plugins(), place)
                    print(keep(found, options.kernel), *words, flush=True)
                    if options.kernel == KERNEL:
                        bench_document.write(json.loads(results(KERNEL).read_text()))
            if options.figure or not options.words:
                for kernel in (RESET, KERNEL):
                    keep(measure(kernel, list(STAMPS), Path(name)), kernel)
                print(figure.draw(RESULTS, (RESET, KERNEL)))
        except (BenchFailedError, DownloadError, guest.GuestError) as error:
            print(f"nothing was measured: {error}", file=sys.stderr)
            return 1
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
