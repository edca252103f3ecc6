# SPDX-License-Identifier: Apache-2.0
"""Instructions per packet that each scenario may take, by kernel and compiler.

They are in budgets.json beside this file, for a kernel's upstream series and a compiler's major
version: both have a say in the machine code, and make more of a difference than is tolerated.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BUDGETS = Path(__file__).with_name("budgets.json")
TOLERANCE = 0.02
# The floor calls nothing of Towpath. If it moves, the kernel or the compiler did that, and what
# else they have moved is not known.
FLOOR_TOLERANCE = 0.005
_DIGITS = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions per packet, and where they hold."""

    kernel: str
    """As ``uname -r`` has it."""
    clang: str
    """The compiler's full version."""
    floors: dict[str, float]
    """Scenario to what the bench takes around a program that does nothing."""
    scenarios: dict[str, float]
    """Scenario to the program's own: the floor is taken off."""

    @classmethod
    def of(cls, report: Mapping[str, Any], clang: str) -> Self:
        """Sum up what a guest has written."""
        found = report["scenarios"].items()
        return cls(
            report["kernel"],
            clang,
            {name: round(each["floor"], _DIGITS) for name, each in found},
            {
                name: round(statistics.median(each["runs"]) - each["floor"], _DIGITS)
                for name, each in found
            },
        )

    @property
    def place(self) -> tuple[str, str]:
        """Under what they are kept: the kernel's series and the compiler's major version."""
        return ".".join(self.kernel.split(".")[:2]), self.clang.split(".")[0]

    def only(self, names: Iterable[str]) -> Self:
        """Return those of some scenarios."""
        wanted = set(names)
        return replace(
            self,
            floors={name: each for name, each in self.floors.items() if name in wanted},
            scenarios={name: each for name, each in self.scenarios.items() if name in wanted},
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of holding counts to their budgets: one line each, for whoever reads them."""

    grown: tuple[str, ...] = ()
    """Scenarios that take too much, or that budgets say nothing of."""
    shrunk: tuple[str, ...] = ()
    """Scenarios whose budget can be lowered."""
    not_binding: tuple[str, ...] = ()
    """Why the budgets say nothing here; empty: they hold."""

    @property
    def failed(self) -> bool:
        """Whether something has grown beyond a budget that holds here."""
        return bool(self.grown) and not self.not_binding


def load(path: Path = BUDGETS) -> list[Counts]:
    """Return all budgets."""
    return [Counts(**each) for each in json.loads(path.read_text())] if path.exists() else []


def find(budgets: Iterable[Counts], place: tuple[str, str]) -> Counts | None:
    """Return the budgets for a kernel's series and a compiler's major version."""
    return next((each for each in budgets if each.place == place), None)


def accept(found: Counts, path: Path = BUDGETS) -> None:
    """Make these the budgets for their kernel and compiler; others keep theirs."""
    every = [found, *(each for each in load(path) if each.place != found.place)]
    every.sort(key=lambda each: [int(word) for word in ".".join(each.place).split(".")])
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps([asdict(each) for each in every], indent=1) + "\n")
    partial.rename(path)


def judge(budget: Counts | None, found: Counts) -> Verdict:
    """Hold what was counted to its budgets."""
    if budget is None:
        series, major = found.place
        return Verdict(not_binding=(f"there are no budgets for Linux {series} and clang {major}",))
    grown, shrunk = [], []
    for name, now in found.scenarios.items():
        before = budget.scenarios.get(name)
        if before is None:
            grown.append(f"{name}: no budget, measured {now:,.1f}")
        elif now > before * (1 + TOLERANCE):
            grown.append(f"{name}: budget {before:,.1f}, measured {now:,.1f} ({more(before, now)})")
        elif now < before * (1 - TOLERANCE):
            told = f"{name}: budget {before:,.1f}, measured {now:,.1f} ({more(before, now)})"
            shrunk.append(told)
    gone = [name for name in budget.scenarios if name not in found.scenarios]
    grown += [f"{name}: budget {budget.scenarios[name]:,.1f}, not measured" for name in gone]
    return Verdict(tuple(grown), tuple(shrunk), tuple(_elsewhere(budget, found)))


def _elsewhere(budget: Counts, found: Counts) -> Iterator[str]:
    """Say why another patch level, or another compiler of the same major version, is too unlike."""
    if (budget.kernel, budget.clang) == (found.kernel, found.clang):
        return
    for name, now in found.floors.items():
        before = budget.floors.get(name, now)
        if abs(now - before) > before * FLOOR_TOLERANCE:
            yield (
                f"budgets are of Linux {budget.kernel} and clang {budget.clang}, this is Linux"
                f" {found.kernel} and clang {found.clang}, and the floor, in which there is nothing"
                f" of Towpath, is {now:,.1f} instead of {before:,.1f}"
            )
            return


def more(before: float, now: float) -> str:
    """Return a change as a percentage."""
    return f"{(now / before - 1) * 100:+.1f} %"


def compared(before: Mapping[str, float], now: Mapping[str, float], title: str) -> str:
    """Return a table of all scenarios, before and now."""
    names = [*before, *(name for name in now if name not in before)]
    width = max(map(len, (*names, "instructions per packet")))
    lines = [f"{'instructions per packet':{width}} {title:>10} {'measured':>10}"]
    for name in names:
        old, new = before.get(name), now.get(name)
        cells = ["-" if each is None else f"{each:,.1f}" for each in (old, new)]
        change = "" if old is None or new is None else more(old, new)
        lines.append(f"{name:{width}} {cells[0]:>10} {cells[1]:>10} {change:>9}".rstrip())
    return "\n".join(lines)
