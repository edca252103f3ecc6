# SPDX-License-Identifier: Apache-2.0
"""What was made of an object, remembered by the object itself."""

from __future__ import annotations

from towpath.itself import remembered


def test_it_is_made_once_for_each_object_and_argument() -> None:
    """Two that are equal are two objects."""
    made: list[tuple[list[int], int]] = []

    @remembered(4)
    def total(numbers: list[int], more: int) -> int:
        made.append((numbers, more))
        return sum(numbers) + more

    one, other = [1, 2], [1, 2]
    assert [total(each, 1) for each in (one, other, one, other)] == [4, 4, 4, 4]
    assert total(one, 2) == 5
    assert [(each[0] is one, each[1]) for each in made] == [(True, 1), (False, 1), (True, 2)]


def test_only_the_last_objects_are_kept() -> None:
    """And what is made anew of one that was forgotten is right, whoever has its number by then."""
    made: list[int] = []

    @remembered(2)
    def first(numbers: list[int]) -> int:
        made.append(numbers[0])
        return numbers[0]

    assert [first([number]) for number in range(100)] == list(range(100))
    assert made == list(range(100))
