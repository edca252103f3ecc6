# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest to measure: a benchmark, by a clock that counts instructions.

Usage: bench_inside.py BENCHMARK OPTION...      writes /results/BENCHMARK.json
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from tools.instructions.inside import check_clock, wait_for_clocksource

RESULTS = Path("/results")
MODULES = {
    "bandwidth": "veth sch_fq sch_cake sch_htb sch_tbf sch_ingress ifb act_mirred cls_u32 "
    "cls_matchall tcp_bbr",
    "socket": "veth dummy nf_tables nft_chain_nat nft_nat nft_masq nft_numgen nft_ct "
    "nf_conntrack ip_vs ip_vs_rr",
}
FILES = 100_000


def main(benchmark: str, words: list[str]) -> int:
    """Measure; the exit code is 0 if that was done."""
    for module in MODULES[benchmark].split():
        subprocess.run(["/sbin/modprobe", "-q", module], check=False)
    wait_for_clocksource()
    check_clock()
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    command = [sys.executable, "-m", "towpath", "bench", benchmark, "--json", *words]
    with (RESULTS / f"{benchmark}.json").open("w") as output:
        return subprocess.run(command, stdout=output, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
