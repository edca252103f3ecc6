# SPDX-License-Identifier: Apache-2.0
"""Writes the table of docs/performance.md from the budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from towpath.bench import bandwidth_cost
from towpath.bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.instructions.budgets import Counts

PAGE = Path(__file__).resolve().parents[2] / "docs/performance.md"
BEGIN, END = "<!-- written by make bench-check WRITE=1 -->\n", "<!-- to here -->\n"


def table(budgets: Sequence[Counts]) -> str:
    """Return the table: a column for each kernel and compiler."""
    columns = [f"Linux {each.kernel}, clang {each.clang}" for each in budgets]
    lines = [_row("scenario", *columns, ""), _row(*["---"] * (len(columns) + 2))]
    for scenario in (*SCENARIOS, *bandwidth_cost.SCENARIOS):
        if not any(scenario.name in each.scenarios for each in budgets):
            continue  # counted when it is asked for
        cells = [_number(each.scenarios.get(scenario.name)) for each in budgets]
        lines.append(_row(scenario.name, *cells, scenario.about))
    floors = [sorted(set(each.floors.values())) for each in budgets]
    cells = [", ".join(map(_number, each)) for each in floors]
    lines.append(_row("floor, not included", *cells, "pods' bandwidth, tunnels and l2, source NAT"))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(count: float | None) -> str:
    return "-" if count is None else f"{count:,.0f}"


def written(page: str) -> str:
    """Return the table that is in the page."""
    return page.partition(BEGIN)[2].partition(END)[0]


def write(budgets: Sequence[Counts]) -> None:
    """Put the table into the page, in the place of the one that is there."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    PAGE.write_text(before + begin + table(budgets) + end + after)
