# SPDX-License-Identifier: Apache-2.0
"""A plan that knows only of the services that change has the steps of one that knows all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from tests.unit.datapath.harness_services import states

from towpath.core.lb.plan import plan

if TYPE_CHECKING:
    from towpath.model import Service


@given(states, states)
def test_others_make_no_difference(before: tuple[Service, ...], after: tuple[Service, ...]) -> None:
    """Steps, in their order, and what people are told, shares included."""
    old = {each.key: each for each in before}
    new = {each.key: each if old.get(each.key) != each else old[each.key] for each in after}
    others = {key for key in old.keys() & new.keys() if old[key] is new[key]}
    whole = plan(old.values(), new.values())
    part = plan(
        [each for key, each in old.items() if key not in others],
        [each for key, each in new.items() if key not in others],
        others=len(others),
    )
    assert part == whole
