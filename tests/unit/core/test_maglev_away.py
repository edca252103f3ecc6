# SPDX-License-Identifier: Apache-2.0
"""Backends that are away for a while: whose slots move, and who gets them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core import oracle_maglev as oracle
from tests.unit.core.lb.test_maglev import backends_of, random_backends, report

from towpath.core.lb import maglev
from towpath.model.primes import prime_at_least

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    Backends = list[tuple[bytes, int]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Backends, int, set[int]]:
    """Backends, a prime that may be as small as their number, and who is away."""
    backends = draw(backends_of(24))
    size = prime_at_least(draw(st.integers(max(2, len(backends)), 300)))
    return backends, size, draw(st.sets(st.integers(0, max(0, len(backends) - 1))))


@settings(max_examples=300)
@given(cases())
def test_equals_the_oracle(case: tuple[Backends, int, set[int]]) -> None:
    """The compiled fill gives slot by slot what fractions give."""
    backends, size, away = case
    assert maglev.table(backends, size, away).tolist() == oracle.table_without(backends, size, away)


@given(cases(), st.randoms(use_true_random=False))
def test_order_has_no_influence(
    case: tuple[Backends, int, set[int]], chance: random.Random
) -> None:
    """Every node of a group makes the same table of the same states."""
    backends, size, away = case
    order = list(range(len(backends)))
    chance.shuffle(order)
    shuffled = [backends[at] for at in order]
    there = [order.index(at) for at in away if at < len(backends)]
    one = [backends[at] for at in maglev.table(backends, size, away)]
    assert one == [shuffled[at] for at in maglev.table(shuffled, size, there)]


@given(cases())
def test_slots_of_those_that_stay_do_not_move(case: tuple[Backends, int, set[int]]) -> None:
    """What somebody has when all are there, it has whoever is away; those away have nothing."""
    backends, size, away = case
    whole, without = maglev.table(backends, size), maglev.table(backends, size, away)
    if not len(without):
        assert all(at in away or not weight for at, (_, weight) in enumerate(backends))
        return
    stay = ~np.isin(whole, list(away))
    assert (whole[stay] == without[stay]).all()
    assert not set(without.tolist()) & away


@settings(max_examples=50)
@given(backends_of(163), st.data())
def test_slots_follow_the_weights_of_those_there(backends: Backends, data: st.DataObject) -> None:
    """With over 100 slots a backend, shares are within 1 % of the weights, or one slot."""
    away = data.draw(st.sets(st.integers(0, max(0, len(backends) - 1))))
    size = 16381
    total = sum(weight for at, (_, weight) in enumerate(backends) if at not in away)
    counts = np.bincount(maglev.table(backends, size, away), minlength=len(backends))
    for at, (_, weight) in enumerate(backends):
        share = size * weight / total if total and at not in away else 0
        assert abs(counts[at] - share) <= max(share / 100, 1)


def test_nobody_there_is_no_table() -> None:
    """As without backends; weight 0 stands for nobody either."""
    assert not len(maglev.table([(b"a", 1), (b"b", 2)], 251, {0, 1}))
    assert not len(maglev.table([(b"a", 1), (b"b", 0)], 251, {0}))


def test_who_comes_back_has_the_slots_it_had() -> None:
    """After any history: the table is made of who is there, not of who was."""
    backends = random_backends(100, seed=12)
    chance = random.Random(12)  # noqa: S311 - not a secret
    whole = maglev.table(backends, 16381)
    away: set[int] = set()
    for _ in range(200):
        away ^= {chance.randrange(100)}
        now = maglev.table(backends, 16381, away)
        there = ~np.isin(whole, list(away))
        assert (now[there] == whole[there]).all()
    assert (maglev.table(backends, 16381) == whole).all()


@pytest.mark.parametrize("weight", [1, None], ids=["equal", "mixed"])
@pytest.mark.parametrize("flapping", [1, 10, 100])
def test_flaps_move_what_they_must(
    flapping: int, weight: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 1,000 backends some go away: nothing moves that isn't theirs. Printed with a rebuild."""
    size = 131071
    backends = random_backends(1000, seed=7, weight=weight)
    chance = random.Random(flapping)  # noqa: S311 - not a secret
    away = set(chance.sample(range(1000), flapping))
    whole = maglev.table(backends, size)
    theirs = float(np.isin(whole, list(away)).mean())
    moved = maglev.disruption(whole, maglev.table(backends, size, away))
    rebuilt = maglev.disruption(whole, _rebuilt(backends, size, away))
    figures = f"moved {moved:.3%}, theirs {theirs:.3%}, by a rebuild {rebuilt:.3%}"
    report(capsys, f"{flapping} of 1000 in {size}, {'equal' if weight else 'mixed'}: {figures}")
    assert moved == theirs
    assert moved < rebuilt


@pytest.mark.parametrize("already", [0, 10, 100])
def test_one_more_goes_while_others_are_away(
    already: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the slots that are filled in, few go to yet another backend: no more than by rebuilds."""
    size = 131071
    backends = random_backends(1000, seed=8)
    theirs, moved, rebuilt = [], [], []
    for more in range(already, already + 8):
        before, after = (maglev.table(backends, size, range(away)) for away in (more, more + 1))
        theirs.append(float((before == more).mean()))
        moved.append(maglev.disruption(before, after))
        rebuilds = [_rebuilt(backends, size, range(away)) for away in (more, more + 1)]
        rebuilt.append(maglev.disruption(*rebuilds))
    figures = ", ".join(
        f"{what} {np.mean(shares):.3%}"
        for what, shares in (("moved", moved), ("its", theirs), ("by a rebuild", rebuilt))
    )
    report(capsys, f"1 more of 1000 in {size}, {already} away: {figures}")
    assert np.mean(theirs) <= np.mean(moved) <= np.mean(rebuilt)


def _rebuilt(backends: Backends, size: int, away: Collection[int]) -> NDArray[np.uint32]:
    """The table of those there alone."""
    alone = [(name, 0 if at in away else weight) for at, (name, weight) in enumerate(backends)]
    return maglev.table(alone, size)
