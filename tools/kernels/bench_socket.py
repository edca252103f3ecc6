# SPDX-License-Identifier: Apache-2.0
"""`towpath bench socket` in a guest whose kernel has IPVS, by a clock that counts instructions.

    python -m tools.kernels.bench_socket             connect(), 10 and 1,000 services
    python -m tools.kernels.bench_socket --kernel 6.1 -- --services 10   what is chosen

The report is written to docs/results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tools.debian.archive import DownloadError
from tools.kernels.bench import RESULTS, BenchFailedError, measure
from tools.kernels.guest import GuestError

KERNEL = "6.12"
SOME = ("--part", "connect", "--services", "10", "--services", "1000")
FEW = ("--runs", "1", "--connections", "45")
"""A clock of instructions varies little, and an emulator is slow."""


def main() -> int:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.bench_socket")
    parser.add_argument("--kernel", default=KERNEL, metavar="NAME", help=f"instead of {KERNEL}")
    parser.add_argument("words", nargs="*", metavar="OPTION", help="of towpath bench socket")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="towpath-kernels-bench-") as name:
        try:
            found = measure(options.kernel, [*FEW, *(options.words or SOME)], Path(name), "socket")
        except (BenchFailedError, DownloadError, GuestError) as error:
            print(f"nothing was measured: {error}", file=sys.stderr)
            return 1
    path = RESULTS / f"socket-{options.kernel}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{path}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
