# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest for `tools.kernels.bench`: a benchmark, once the clock is known to be right.

Usage: bench_inside.py OPTION...      writes /results/bandwidth.json
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tools.kernels.bench import WRONG_CLOCK

RESULT = Path("/results/bandwidth.json")
MODULES = (
    "veth sch_fq sch_cake sch_htb sch_tbf sch_ingress ifb act_mirred cls_u32 cls_matchall tcp_bbr"
)
_SECONDS = 4
_TOLERANCE = 0.02
_RTC = Path("/sys/class/rtc/rtc0/since_epoch")


def clock_is_right() -> bool:
    """Whether the kernel's seconds are those of the machine's real-time clock.

    The kernel calibrates its counter while it boots. Where the emulator is held up just then, it
    may find a frequency that is many times too low.
    """
    first = _next_second()
    for _ in range(_SECONDS):
        last = _next_second()
    return abs(last - first - _SECONDS) <= _TOLERANCE * _SECONDS


def _next_second() -> float:
    """Return the kernel's time when the next second of the real-time clock begins."""
    before = _RTC.read_text()
    while _RTC.read_text() == before:
        time.sleep(0.002)
    return time.monotonic()


def main(words: list[str]) -> int:
    """Measure; the exit code is 0 if that was done."""
    for module in MODULES.split():
        subprocess.run(["/sbin/modprobe", "-q", module], check=False)
    if not clock_is_right():
        return WRONG_CLOCK
    command = [sys.executable, "-m", "towpath", "bench", "bandwidth", "--json", *words]
    with RESULT.open("w") as output:
        return subprocess.run(command, stdout=output, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
