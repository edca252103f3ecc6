# SPDX-License-Identifier: Apache-2.0
"""Which tests run in which guest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.guests import (
    LOGIC,
    MAX_PARAMETERS,
    beyond_logic,
    divided,
    divided_lab,
    thinned,
    unmarked,
)

if TYPE_CHECKING:
    import pytest


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
GUEST = [
    Item("tests/guest/test_netem.py::test_transfers"),
    Item("tests/guest/test_bond.py::test_b"),
]
GUEST_MODULES = {each.nodeid.partition("::")[0] for each in GUEST}


def items(made: list[Item]) -> list[pytest.Item]:
    """Them as pytest's."""
    return cast("list[Any]", made)


def test_each_module_of_programs_is_in_one_part_and_all_others_in_each() -> None:
    """Of its tests one set of parameters each."""
    counted = Counter[object]()
    modules: list[set[str]] = []
    for part in range(2):
        kept, left = divided(items(PROG + GUEST), part, 2, {})
        assert sorted(map(hash, [*kept, *left])) == sorted(map(hash, PROG + GUEST))
        counted.update(kept)
        modules.append({each.nodeid.partition("::")[0] for each in kept} - {*GUEST_MODULES})
    assert sorted(map(sorted, modules)) == [["tests/prog/test_x.py"], ["tests/prog/test_y.py"]]
    assert all(counted[each] == 2 for each in GUEST)
    names = Counter(each.nodeid.partition("[")[0] for each in PROG if counted[each])
    assert set(names.values()) == {1}
    assert len(names) == 6


def test_each_module_of_the_lab_is_in_one_part_but_for_what_kernels_differ_in() -> None:
    """With all sets of parameters; programs' tests aren't concerned."""
    marked = Item("tests/guest/test_stamps.py::test_s", marker="each_kernel")
    made = [*PROG, *GUEST, Item("tests/guest/test_bond.py::test_b[2]"), marked]
    found = [divided_lab(items(made), part, 2, {}) for part in range(2)]
    for kept, left in found:
        assert sorted(map(hash, [*kept, *left])) == sorted(map(hash, made))
        assert {*items(PROG), marked} <= {*kept}
    assert [{each.nodeid for each in left} for _, left in found] == [
        {"tests/guest/test_netem.py::test_transfers"},
        {"tests/guest/test_bond.py::test_b", "tests/guest/test_bond.py::test_b[2]"},
    ]


def test_all_have_about_as_much_to_do() -> None:
    """As the modules' costs have it; an unknown one's are guessed by its tests."""
    costs = {"tests/prog/test_a.py": 50.0, "tests/prog/test_x.py": 30.0, "tests/prog/test_y.py": 20}
    made = [Item("tests/prog/test_a.py::test_b"), *PROG]
    found = [divided(items(made), part, 2, costs)[0] for part in range(2)]
    assert [{each.nodeid.partition("::")[0][-4] for each in kept} for kept in found] == [
        {"a"},
        {"x", "y"},
    ]


def test_what_is_the_hosts_alone_is_left_out() -> None:
    """By its marker."""
    marked = Item("tests/prog/test_x.py::test_z", marker="host")
    assert unmarked(items([marked, *PROG]), "host") == (items(PROG), items([marked]))


def test_what_no_kernel_decides_is_left_to_the_host() -> None:
    """By its module, each of which there is."""
    assert [each for each in sorted(LOGIC) if not Path(each).exists()] == []
    logic = Item(f"{min(LOGIC)}::test_z")
    assert beyond_logic(items([logic, *PROG])) == (items(PROG), items([logic]))


def test_of_many_parameters_some_are_tried() -> None:
    """From the first on."""
    kept, left = thinned(items(PROG))
    assert {"x.py::test_u[0]", "x.py::test_u[3]"} <= {
        each.nodeid.partition("_")[2] for each in kept
    }
    assert len(kept) <= 6 * MAX_PARAMETERS
    assert len(kept) + len(left) == len(PROG)
