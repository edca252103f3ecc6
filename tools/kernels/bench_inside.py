# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest for `tools.kernels.bench`: a benchmark, by a clock that counts instructions.

Usage: bench_inside.py OPTION...      writes /results/bandwidth.json
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.instructions.inside import check_clock, wait_for_clocksource

RESULT = Path("/results/bandwidth.json")
MODULES = (
    "veth sch_fq sch_cake sch_htb sch_tbf sch_ingress ifb act_mirred cls_u32 cls_matchall tcp_bbr"
)


def main(words: list[str]) -> int:
    """Measure; the exit code is 0 if that was done."""
    for module in MODULES.split():
        subprocess.run(["/sbin/modprobe", "-q", module], check=False)
    wait_for_clocksource()
    check_clock()
    command = [sys.executable, "-m", "towpath", "bench", "bandwidth", "--json", *words]
    with RESULT.open("w") as output:
        return subprocess.run(command, stdout=output, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
