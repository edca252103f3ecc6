# SPDX-License-Identifier: Apache-2.0
"""Whether programs have grown: instructions verified and bytes of machine code.

What was accepted last is in baseline.json beside this file, by the major of the clang that has made
them and by kernel: another compiler makes other programs of the same source. A program may shrink
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
Accepted = dict[str, dict[str, Sizes]]
"""Compiler (`compiler`) to kernel to sizes."""


def compiler(version: str) -> str:
    """Return how sizes are filed of what a clang of this version has made."""
    return f"clang {version.partition('.')[0]}"


def sizes(programs: list[dict[str, Any]]) -> Sizes:
    """Return the sizes in a guest's report."""
    return {
        each["program"]: {measure: each[measure] for measure in MEASURES}
        for each in programs
        if "program" in each
    }


def accepted() -> Accepted:
    """Return what was accepted last."""
    loaded: Accepted = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return loaded


def accept(found: Accepted) -> None:
    """Accept these; compilers and kernels that are not among them keep theirs."""
    merged = accepted()
    for clang, by_kernel in found.items():
        merged[clang] = merged.get(clang, {}) | by_kernel
    BASELINE.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")


def grown(where: str, before: Sizes, now: Sizes) -> list[str]:
    """Return one line for each program that has grown too much, or is not known yet."""
    lines = []
    for program, measured in sorted(now.items()):
        if program not in before:
            lines.append(f"{where}: {program} is new: accept its size")
            continue
        for measure in MEASURES:
            old, new = before[program][measure], measured[measure]
            if new > old * (1 + TOLERANCE):
                lines.append(f"{where}: {program}: {measure} {old} -> {new}")
    return lines
