# SPDX-License-Identifier: Apache-2.0
"""Which tests run in which guest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from tests.guests import LOGIC, MAX_PARAMETERS, one_each, shared, thinned, unmarked
from tools.kernels.__main__ import troubles_of
from tools.kernels.guest import Outcome
from tools.kernels.share import shares
from tools.kernels.supported import SUPPORTED, Suite


@dataclass(frozen=True)
class Item:
    """A test, as far as it matters here."""

    nodeid: str
    marker: str | None = None

    def get_closest_marker(self, name: str) -> str | None:
        """As pytest's."""
        return name if name == self.marker else None


PROG = [
    Item(f"tests/prog/test_{a}.py::test_{b}[{c}]") for a in "xy" for b in "uvw" for c in range(9)
]
GUEST = [Item(f"tests/guest/test_bond.py::test_b[{c}]") for c in range(3)]


def items(made: list[Item]) -> list[pytest.Item]:
    """Them as pytest's."""
    return cast("list[Any]", made)


def test_each_guest_tries_another_set_of_parameters() -> None:
    """Of each test of programs; of the lab's tests all."""
    tried = Counter[object]()
    for number in range(9):
        kept, left = one_each(items([*PROG, *GUEST]), number)
        assert sorted(map(hash, [*kept, *left])) == sorted(map(hash, [*PROG, *GUEST]))
        assert {*items(GUEST)} <= {*kept}
        tried.update({*kept} - {*items(GUEST)})
    assert tried == Counter(items(PROG))


def test_each_module_is_one_guests_and_all_have_about_as_much_to_do() -> None:
    """As the modules' costs have it, and what a guest has to do already; the cheap ones first."""
    costs = {"a": 50.0, "b": 30.0, "c": 20.0, "d": 1.0}
    assert shared({*costs}, {"6.1": 0.0, "6.12": 0.0}, costs) == {
        "6.1": ["d", "a"],
        "6.12": ["c", "b"],
    }
    busy = shared({*costs, "unknown"}, {"6.1": 95.0, "6.12": 0.0}, costs)
    assert busy == {"6.1": ["unknown"], "6.12": ["d", "c", "b", "a"]}


def test_what_is_the_hosts_alone_is_left_out() -> None:
    """By its marker."""
    marked = Item("tests/prog/test_x.py::test_z", marker="host")
    assert unmarked(items([marked, *PROG]), "host") == (items(PROG), items([marked]))


def test_what_no_kernel_decides_is_left_to_the_host() -> None:
    """By its module, each of which there is."""
    assert [each for each in sorted(LOGIC) if not Path(each).exists()] == []


def test_guests_that_share_tests_run_all_but_what_is_the_hosts() -> None:
    """Each module in one guest; the lab's first, and last what may change a kernel for good."""
    kernels = [kernel for kernel in SUPPORTED if kernel.blocking]
    made = shares(kernels, get_args(Suite), 60)
    found = {kernel.name: own.paths for kernel, own in zip(kernels, made, strict=True)}
    ran = Counter(path for paths in found.values() for path in paths)
    programs = {str(path) for path in Path("tests/prog").rglob("test_*.py")} - LOGIC
    whole = ("\npytestmark = pytest.mark.host\n", "\npytestmark = pytest.mark.thorough\n")
    left = {path for path in programs if any(mark in Path(path).read_text() for mark in whole)}
    assert {path for path in ran if path.startswith("tests/prog/")} == programs - left
    assert {str(path) for path in Path("tests/guest").glob("test_*.py")} <= {*ran}
    assert {path for path, times in ran.items() if times > 1} == {
        "tests/compilers",
        "tests/guest/test_degrade.py",
        "tests/guest/test_cgroup_tags.py",
    }
    assert found["5.10"][-1] == "tests/guest/test_cgroup_tags.py"
    assert found["6.1"][1].startswith("tests/guest/")


def test_guests_that_share_tests_run_no_others_of_a_suite() -> None:
    """Where only one suite is asked for."""
    kernels = [kernel for kernel in SUPPORTED if kernel.blocking]
    paths = [own.paths for own in shares(kernels, {"compilers"}, 60)]
    assert paths == [["tests/compilers"]] * len(kernels)


@pytest.mark.parametrize(
    ("counts", "well"),
    [
        ([{"passed": 3, "untried": 9}, {"untried": 5}], True),
        ([{"passed": 3}, {"passed": 1, "failed": 1}], False),
        ([{"untried": 3}, {"untried": 5, "skipped": 1}], False),
        ([{"passed": 3}, {}], False),
    ],
)
def test_a_guest_may_have_no_time_for_one_suite_but_not_for_all(
    tmp_path: Path, counts: list[dict[str, int]], *, well: bool
) -> None:
    """Nor may a suite have no tests, or one that failed."""
    suites = {str(number): {"counts": each} for number, each in enumerate(counts)}
    outcome = Outcome("done", 0, "", "", 1.0, started=True)
    assert (not troubles_of({"suites": suites}, outcome, tmp_path)) == well


def test_of_many_parameters_some_are_tried() -> None:
    """From the first on."""
    kept, left = thinned(items(PROG))
    assert {"x.py::test_u[0]", "x.py::test_u[3]"} <= {
        each.nodeid.partition("_")[2] for each in kept
    }
    assert len(kept) <= 6 * MAX_PARAMETERS
    assert len(kept) + len(left) == len(PROG)
