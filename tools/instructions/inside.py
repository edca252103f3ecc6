# SPDX-License-Identifier: Apache-2.0
"""What runs in the guest: scenarios of ``towpath bench``, by a clock that counts.

Usage: inside.py OBJECTS [SCENARIO]...      writes /results/instructions.json

OBJECTS is the directory of the compiled programs. The Towpath that is imported may be another
checkout's.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Collection

RESULT = Path("/results/instructions.json")

# A jiffy is four million instructions, a few thousand packets: a run is shorter, so that most see
# none go by. First every backend's next hop is asked for, as it is once a jiffy, and what may be
# learnt in a jiffy is. One run's flows of a diverse scenario are not the next one's.
TIMED, UNTIMED = 30, 32
RUNS = 9
FLOORS = 3

_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_CLOCKSOURCE_SECONDS = 60.0
_TURNS = 500_000  # of the loop of known length: a quarter of a jiffy
_TRIES = 5
_TOLERANCE = 0.002


class ClockError(Exception):
    """The clock doesn't count instructions."""


def wait_for_clocksource() -> None:
    """Wait until the kernel trusts the counter that it has calibrated."""
    deadline = time.monotonic() + _CLOCKSOURCE_SECONDS
    while (found := _CLOCKSOURCE.read_text().strip()) != "tsc":
        if time.monotonic() > deadline:
            raise ClockError(f"the clocksource is {found}, not tsc")
        time.sleep(0.1)


def check_clock() -> None:
    """Time two loops of known length. ClockError: a nanosecond isn't an instruction.

    Of one alone it would be Python's calls as well, whose length is another in each version.
    """
    taken = _loop(2 * _TURNS) - _loop(_TURNS)
    if abs(taken - 2 * _TURNS) > _TOLERANCE * 2 * _TURNS:
        raise ClockError(f"{2 * _TURNS} instructions took {taken} ns by this clock")


def _loop(turns: int) -> int:
    """Nanoseconds of two instructions, so often; the least of some tries."""
    # mov ecx, turns; 1: dec ecx; jnz 1b; ret
    code = b"\xb9" + struct.pack("<I", turns) + b"\xff\xc9\x75\xfc\xc3"
    with mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        loop = ctypes.CFUNCTYPE(None)(ctypes.addressof(start))
        taken = min(_nanoseconds(loop) for _ in range(_TRIES))
        del start
    return taken


def _nanoseconds(function: Any) -> int:
    began = time.monotonic_ns()
    function()
    return time.monotonic_ns() - began


def count(bench: Any, scenario: Any) -> dict[str, Any]:
    """Return instructions per packet: those of the floor, and each run's, which include them."""
    bench.warm_up(scenario)
    floor = min(bench.floor(scenario) for _ in range(FLOORS))
    return {"floor": floor, "runs": [bench.time(scenario) for _ in range(RUNS)]}


def main(objects: str, *names: str) -> int:
    """Count, and write down what was found."""
    from towpath.kernel.bpf import object as packaged  # noqa: PLC0415 - the clock is looked at first

    packaged.OBJECTS = Path(objects)
    wait_for_clocksource()
    check_clock()
    found = balancing(names) | bandwidth(names)
    check_clock()
    RESULT.write_text(json.dumps({"kernel": os.uname().release, "scenarios": found}, indent=1))
    return 0


def balancing(names: Collection[str]) -> dict[str, Any]:
    """Count those of the load balancer, of these names, or all if there are none."""
    from towpath.bench.cpu import on_one_cpu  # noqa: PLC0415 - as in main
    from towpath.bench.loadbalancer import Length, rig  # noqa: PLC0415 - as in main
    from towpath.bench.scenarios import SCENARIOS  # noqa: PLC0415 - as in main

    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    if not chosen:
        return {}
    # Many flows come last: the flow of another scenario would share its set with one of them or
    # not, as the seed has it, and be the first that is looked at or not.
    chosen.sort(key=lambda scenario: scenario.flows)
    # The tables are seeded at random so that nobody can choose which flows share a set. Here the
    # same ones do in every guest.
    seeded = patch("towpath.datapath.maps.shared.secrets.randbits", Random(1).getrandbits)  # noqa: S311
    with seeded, on_one_cpu(), rig(Length(TIMED, UNTIMED)) as bench:
        found = {scenario.name: count(bench, scenario) for scenario in chosen}
    return {scenario.name: found[scenario.name] for scenario in SCENARIOS if scenario in chosen}


def bandwidth(names: Collection[str]) -> dict[str, Any]:
    """The same of pods' bandwidth. Nothing where the checkout has no such benchmark."""
    try:
        from towpath.bench.bandwidth_cost import SCENARIOS, rig  # noqa: PLC0415 - as in main
    except ImportError:
        return {}
    from towpath.bench.cpu import on_one_cpu  # noqa: PLC0415 - as in main

    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    if not chosen:
        return {}
    with on_one_cpu(), rig(length=(TIMED, UNTIMED)) as bench:
        return {scenario.name: count(bench, scenario) for scenario in chosen}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
