# SPDX-License-Identifier: Apache-2.0
"""A mapping whose changed copies share what they can is as a dictionary that is copied."""

from __future__ import annotations

from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from towpath.layered import Layered

Change: TypeAlias = tuple[dict[int, int], list[int]]

keys = st.integers(0, 100)
changes = st.lists(
    st.tuples(
        st.dictionaries(keys, st.integers(), max_size=40), st.lists(keys, max_size=40, unique=True)
    ),
    max_size=30,
)


@given(st.dictionaries(keys, st.integers()), changes)
def test_it_is_as_a_dictionary(first: dict[int, int], made: list[Change]) -> None:
    """Whatever is put and removed, and all that there were before stay as they were."""
    was: list[tuple[Layered[int, int], dict[int, int]]] = [(Layered(first), dict(first))]
    for put, remove in made:
        there, expected = was[-1]
        wanted = {key: each for key, each in expected.items() if key not in remove} | put
        was.append((there.changed(put, remove), wanted))
    for there, expected in was:
        assert dict(there.items()) == expected == there.flat()
        assert len(there) == len(expected)
        assert sorted(there.values()) == sorted(expected.values())
        for key in range(101):
            assert (key in there) == (key in expected)
            assert there.get(key, "none") == expected.get(key, "none")


def test_what_is_replaced_keeps_its_place() -> None:
    """And what is new comes last."""
    there = Layered({number: number for number in range(5)})
    assert list(there.changed({9: 0, 2: 7})) == [0, 1, 2, 3, 4, 9]


def test_a_copy_in_which_nothing_changes_is_the_same() -> None:
    """It costs nothing to be asked for."""
    there = Layered({1: 1})
    assert there.changed({}, [2]) is there


def test_a_draft_says_what_there_is_by_now() -> None:
    """What was put and taken out of it again leaves nothing."""
    there = Layered({1: 1})
    draft = there.draft()
    draft[2] = 2
    assert (draft.get(2), draft.pop(2), draft.pop(2)) == (2, 2, None)
    assert draft.pop(1) == 1
    assert 1 not in draft
    draft[1] = 3
    assert dict(draft.done()) == {1: 3}
    assert dict(there) == {1: 1}
