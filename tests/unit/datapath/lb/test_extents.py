# SPDX-License-Identifier: Apache-2.0
"""The extents beside a map of cells, which cannot be wrong about overlaps."""

from __future__ import annotations

import re
from itertools import groupby

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from towpath.datapath.lb.extents import Extents

SIZE = 48
FREE, USED, RETIRED = "free", "used", "retired"

counts = st.integers(1, SIZE // 2)
bases = st.integers(0, SIZE - 1)


class ExtentsMachine(RuleBasedStateMachine):
    """Every operation, done to the extents and to a list with one entry per slot."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.extents = Extents(SIZE, self._wait)
        self.cells = [FREE] * SIZE
        self.taken: list[tuple[int, int]] = []

    def _wait(self) -> None:
        self.waits += 1

    def runs(self) -> list[tuple[int, int]]:
        """The free ranges, as wide as they can be."""
        cells = groupby(range(SIZE), self.cells.__getitem__)
        found = [(state, list(places)) for state, places in cells]
        return [(places[0], len(places)) for state, places in found if state == FREE]

    def first_fit(self, count: int) -> int | None:
        """Where a range belongs."""
        return next((base for base, room in self.runs() if room >= count), None)

    def mark(self, base: int, count: int, state: str) -> None:
        """Paint the slots of a range."""
        self.cells[base : base + count] = [state] * count

    @rule(count=counts)
    def allocate(self, count: int) -> None:
        """The first range that fits; what is retired is taken only when nothing else fits."""
        expected, waits = self.first_fit(count), self.waits
        if expected is None and RETIRED in self.cells:
            self.wake()
            expected, waits = self.first_fit(count), waits + 1
        assert self.extents.allocate(count) == expected
        assert self.waits == waits
        if expected is not None:
            assert set(self.cells[expected : expected + count]) == {FREE}
            self.mark(expected, count, USED)
            self.taken.append((expected, count))

    @rule(base=bases, count=counts)
    def reserve(self, base: int, count: int) -> None:
        """A given range, if all of it is free."""
        if set(self.cells[base : base + count]) == {FREE} and base + count <= SIZE:
            self.extents.reserve(base, count)
            self.mark(base, count, USED)
            self.taken.append((base, count))
        else:
            message = re.escape(f"slots {base} to {base + count - 1} are not free")
            with pytest.raises(ValueError, match=message):
                self.extents.reserve(base, count)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def rest(self, data: st.DataObject) -> None:
        """A range that is given up is nobody's until readers have been waited for."""
        each = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.extents.retire(*each)
        self.mark(*each, RETIRED)

    @rule()
    def settle(self) -> None:
        """Everything that is retired is free after one wait; there is none for nothing."""
        waits, retired = self.waits, RETIRED in self.cells
        assert self.extents.reclaim() == retired
        assert self.waits == waits + retired
        self.wake()

    def wake(self) -> None:
        """What rested is free."""
        self.cells = [FREE if state == RETIRED else state for state in self.cells]

    @rule(wanted=st.lists(counts, max_size=4))
    def foretell(self, wanted: list[int]) -> None:
        """A copy finds what the extents will find, waits for nobody and changes nothing."""
        waits = self.waits
        copy, again = self.extents.dry_run(), self.extents.dry_run()
        assert [copy.allocate(count) for count in wanted] == [
            again.allocate(count) for count in wanted
        ]
        assert self.waits == waits

    @invariant()
    def free_ranges_are_joined(self) -> None:
        """The extents's free ranges are the runs of free cells."""
        assert self.extents._free == self.runs()
        assert self.extents.largest == max((room for _, room in self.runs()), default=0)


TestExtents = ExtentsMachine.TestCase


def test_reserve_refuses_an_empty_range() -> None:
    """A table of 0 slots is no range."""
    with pytest.raises(ValueError, match="not free"):
        Extents(8).reserve(0, 0)


def test_ranges_given_back_in_any_order_are_one_again() -> None:
    """Neighbours before, after and on both sides are joined."""
    extents = Extents(40)
    ranges = [(base, 10) for base in range(0, 40, 10) if extents.allocate(10) == base]
    for base, count in (ranges[0], ranges[2], ranges[3], ranges[1]):
        extents.retire(base, count)
    assert extents.allocate(40) == 0
