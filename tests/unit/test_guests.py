# SPDX-License-Identifier: Apache-2.0
"""Which tests run in which guest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tests.guests import MOST_PARAMETERS, divided, thinned

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Item:
    """A test, as far as it matters here."""

    nodeid: str


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


def test_each_test_of_programs_is_in_one_part_and_all_others_in_each() -> None:
    """With all its parameters."""
    counted = Counter[object]()
    for part in range(3):
        kept, left = divided(items(PROG + GUEST), part, 3)
        assert sorted(map(hash, [*kept, *left])) == sorted(map(hash, PROG + GUEST))
        assert len(kept) == 2 * 9 + len(GUEST)
        counted.update(kept)
    assert counted == Counter(PROG) + Counter(GUEST * 3)


def test_of_many_parameters_some_are_tried() -> None:
    """From the first on."""
    kept, left = thinned(items(PROG))
    assert {"x.py::test_u[0]", "x.py::test_u[3]"} <= {
        each.nodeid.partition("_")[2] for each in kept
    }
    assert len(kept) <= 6 * MOST_PARAMETERS
    assert len(kept) + len(left) == len(PROG)
