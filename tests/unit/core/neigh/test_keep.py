# SPDX-License-Identifier: Apache-2.0
"""What is done for next hops, case by case."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from towpath.core.neigh.keep import Action, action, plan


@dataclass(frozen=True)
class Found:
    """An entry of the kernel's."""

    ours: bool = False
    taken: bool = False
    valid: bool = True
    lasting: bool = False


KERNELS = Found()
OURS = Found(ours=True)
UNRESOLVED = Found(ours=True, valid=False)
LASTING = Found(ours=True, lasting=True)
USERS = Found(taken=True)


@pytest.mark.parametrize(
    ("entry", "wanted", "can_hold", "expected"),
    [
        (None, True, True, Action.MAKE),
        (None, False, True, None),
        (KERNELS, True, True, Action.ADOPT),
        (KERNELS, False, True, None),
        (USERS, True, True, None),
        (USERS, False, True, None),
        (OURS, True, True, Action.HOLD),
        (OURS, True, False, None),
        (OURS, False, True, Action.REMOVE),
        (UNRESOLVED, True, True, None),
        (UNRESOLVED, False, True, Action.REMOVE),
        (LASTING, True, True, None),
        (LASTING, False, False, Action.REMOVE),
    ],
)
def test_each_case_has_one_action(
    entry: Found | None,
    wanted: bool,  # noqa: FBT001 -- a case
    can_hold: bool,  # noqa: FBT001 -- a case
    expected: Action | None,
) -> None:
    """Whose the entry is decides: others' are never touched."""
    assert action(entry, wanted=wanted, can_hold=can_hold) is expected


def test_a_plan_has_all_that_is_to_be_done_in_order() -> None:
    """In the order of what is wanted; what is removed comes last."""
    present = {"kernel's": KERNELS, "old": LASTING, "ours": OURS, "user's": USERS}
    wanted = ["a", "kernel's", "b", "ours", "c", "user's"]
    found = plan(wanted, present, can_hold=True)
    assert list(found.items()) == [
        ("a", Action.MAKE),
        ("kernel's", Action.ADOPT),
        ("b", Action.MAKE),
        ("ours", Action.HOLD),
        ("c", Action.MAKE),
        ("old", Action.REMOVE),
    ]


def test_nothing_to_do_is_an_empty_plan() -> None:
    """What is there as it should be stays untouched."""
    present = {"a": LASTING, "b": USERS, "c": KERNELS}
    assert not plan(["a", "b"], present, can_hold=True)
