# SPDX-License-Identifier: Apache-2.0
"""Instructions per packet are held to budgets where these hold, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tools.instructions import budgets, document, inside
from tools.instructions.budgets import Counts, accept, find, judge, load

from towpath.bench import bandwidth_cost
from towpath.bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from pathlib import Path

BUDGET = Counts(
    "6.12.117+deb13-cloud-amd64",
    "14.0.6",
    {"hit": 148.8, "snat": 170.8},
    {"hit": 1000.0, "snat": 2000.0},
)
NEXT_KERNEL = "6.12.130+deb13-cloud-amd64"


def measured(**scenarios: float) -> Counts:
    """The budgets' place, with other counts."""
    return replace(BUDGET, scenarios=BUDGET.scenarios | scenarios)


def test_runs_are_summed_up_by_their_median_without_the_floor() -> None:
    """One run with the kernel's own work in it makes no difference."""
    report = {
        "kernel": "6.12.1",
        "scenarios": {"hit": {"floor": 148.84, "runs": [1041.0, 5000.0, 1040.84]}},
    }
    assert Counts.of(report, "14.0.6") == Counts("6.12.1", "14.0.6", {"hit": 148.8}, {"hit": 892.2})


def test_what_is_within_two_percent_is_well() -> None:
    """In either direction."""
    verdict = judge(BUDGET, measured(hit=1020.0, snat=1960.0))
    assert verdict == budgets.Verdict()
    assert not verdict.failed


def test_growth_fails_and_is_named() -> None:
    """The scenario, its budget, what was measured and by how much."""
    verdict = judge(BUDGET, measured(hit=1020.2))
    assert verdict.failed
    assert verdict.grown == ("hit: budget 1,000.0, measured 1,020.2 (+2.0 %)",)


def test_a_budget_that_can_be_lowered_is_told() -> None:
    """It fails nothing."""
    verdict = judge(BUDGET, measured(snat=1900.0))
    assert not verdict.failed
    assert verdict.shrunk == ("snat: budget 2,000.0, measured 1,900.0 (-5.0 %)",)


def test_a_scenario_without_a_budget_fails() -> None:
    """Whoever adds one says what it may take."""
    verdict = judge(BUDGET, measured(new=10.0))
    assert verdict.failed
    assert verdict.grown == ("new: no budget, measured 10.0",)


def test_a_scenario_that_is_gone_fails() -> None:
    """A budget that nothing is held to is no budget."""
    verdict = judge(BUDGET, BUDGET.only(["hit"]))
    assert verdict.failed
    assert verdict.grown == ("snat: budget 2,000.0, not measured",)
    assert not judge(BUDGET.only(["hit"]), BUDGET.only(["hit"])).failed


def test_another_patch_level_is_held_to_the_same_budgets() -> None:
    """Unless it has moved the floor, in which there is nothing of Towpath."""
    grown = replace(measured(hit=1100.0), kernel=NEXT_KERNEL)
    assert judge(BUDGET, grown).failed
    moved = replace(grown, floors={"hit": 151.8, "snat": 173.8})
    verdict = judge(BUDGET, moved)
    assert verdict.grown
    assert not verdict.failed
    assert NEXT_KERNEL in verdict.not_binding[0]
    assert "151.8 instead of 148.8" in verdict.not_binding[0]


def test_the_same_kernel_and_compiler_are_always_held_to_them() -> None:
    """A floor that moves by itself is not an excuse."""
    assert judge(BUDGET, replace(measured(hit=1100.0), floors={"hit": 200.0, "snat": 220.0})).failed


@pytest.mark.parametrize(("kernel", "clang"), [("6.18.3", "14.0.6"), (BUDGET.kernel, "21.1.0")])
def test_an_unknown_kernel_or_compiler_fails_nothing(kernel: str, clang: str) -> None:
    """It is told, and by whose name."""
    found = replace(measured(hit=9999.0), kernel=kernel, clang=clang)
    verdict = judge(find([BUDGET], found.place), found)
    assert not verdict.failed
    (told,) = verdict.not_binding
    assert kernel.rpartition(".")[0] in told or clang.partition(".")[0] in told


def test_budgets_are_accepted_place_by_place(tmp_path: Path) -> None:
    """Those of other kernels and compilers stay; a newer patch level takes its place."""
    path = tmp_path / "budgets.json"
    other = replace(BUDGET, clang="19.1.7")
    older = replace(BUDGET, kernel="6.1.0-50-cloud-amd64")
    for each in (other, BUDGET, older, replace(BUDGET, kernel=NEXT_KERNEL)):
        accept(each, path)
    kept = [(each.kernel, each.clang) for each in load(path)]
    assert kept == [
        (older.kernel, "14.0.6"),
        (NEXT_KERNEL, "14.0.6"),
        (other.kernel, "19.1.7"),
    ]
    assert find(load(path), other.place) == other


def test_every_scenario_has_a_budget() -> None:
    """For every kernel and compiler that has any."""
    names = [each.name for each in (*SCENARIOS, *bandwidth_cost.SCENARIOS)]
    assert load()
    assert all(list(each.scenarios) == names for each in load())


def test_the_table_in_the_documentation_is_that_of_the_budgets() -> None:
    """It is written with them."""
    assert document.written(document.PAGE.read_text()) == document.table(load())


def test_a_clock_that_does_not_count_is_told() -> None:
    """Such as this machine's."""
    with pytest.raises(inside.ClockError, match="1000000 instructions took"):
        inside.check_clock()
