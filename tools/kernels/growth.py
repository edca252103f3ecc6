# SPDX-License-Identifier: Apache-2.0
"""Whether programs have grown: instructions verified and bytes of machine code, by kernel.

What was accepted last is in baseline.json beside this file. A program may shrink
and may grow by a tenth; more than that has to be accepted by whoever did it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.10
MEASURES = ("verified", "jited")

Sizes = dict[str, dict[str, int]]
"""Program to measure to number."""


def sizes(programs: list[dict[str, Any]]) -> Sizes:
    """Return the sizes in a guest's report."""
    return {
        each["program"]: {measure: each[measure] for measure in MEASURES}
        for each in programs
        if "program" in each
    }


def accepted() -> dict[str, Sizes]:
    """Return what was accepted last, by kernel."""
    loaded: dict[str, Sizes] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return loaded


def accept(found: dict[str, Sizes]) -> None:
    """Accept these; kernels that are not among them keep theirs."""
    merged = accepted() | found
    BASELINE.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")


def grown(kernel: str, before: Sizes, now: Sizes) -> list[str]:
    """Return one line for each program that has grown too much, or is not known yet."""
    lines = []
    for program, measured in sorted(now.items()):
        if program not in before:
            lines.append(f"{kernel}: {program} is new: accept its size")
            continue
        for measure in MEASURES:
            old, new = before[program][measure], measured[measure]
            if new > old * (1 + TOLERANCE):
                lines.append(f"{kernel}: {program}: {measure} {old} -> {new}")
    return lines
