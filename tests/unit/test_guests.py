# SPDX-License-Identifier: Apache-2.0
"""Which tests run in which guest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tests.guests import MOST_PARAMETERS, divided, for_guests, thinned

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


def items(made: list[Item]) -> list[pytest.Item]:
    """Them as pytest's."""
    return cast("list[Any]", made)


COSTS = {"tests/prog/test_x.py::test_u": 5.0, "tests/guest/test_bond.py::test_b": 90.0}


def test_costly_tests_are_shared_and_all_others_are_everyones() -> None:
    """One set of parameters for each guest; what has none goes to the one with least to do."""
    counted = Counter[object]()
    shared: list[set[str]] = []
    for part in range(3):
        kept, left = divided(items(PROG + GUEST), part, 3, COSTS)
        assert sorted(map(hash, [*kept, *left])) == sorted(map(hash, PROG + GUEST))
        counted.update(kept)
        shared.append({each.nodeid for each in kept if each.nodeid.partition("[")[0] in COSTS})
    costly = {each for each in PROG + GUEST if each.nodeid.partition("[")[0] in COSTS}
    for each in {*PROG, *GUEST} - costly:
        assert counted[each] == 3
    assert sorted(map(len, shared)) == [1, 1, 2]
    assert len(set.union(*shared)) == 4


def test_without_costs_each_guest_runs_everything() -> None:
    """As before anybody has measured."""
    assert divided(items(PROG), 1, 3, {}) == (items(PROG), [])


def test_what_is_the_hosts_alone_is_left_out() -> None:
    """By its marker."""
    marked = Item("tests/prog/test_x.py::test_z", marker="host")
    assert for_guests(items([marked, *PROG])) == (items(PROG), items([marked]))


def test_of_many_parameters_some_are_tried() -> None:
    """From the first on."""
    kept, left = thinned(items(PROG))
    assert {"x.py::test_u[0]", "x.py::test_u[3]"} <= {
        each.nodeid.partition("_")[2] for each in kept
    }
    assert len(kept) <= 6 * MOST_PARAMETERS
    assert len(kept) + len(left) == len(PROG)
