# SPDX-License-Identifier: Apache-2.0
"""Collections that are short, and garbage that goes all the same."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from towpath.agent import garbage

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ring:
    """Refers to itself: garbage that only a collection finds."""

    def __init__(self) -> None:
        self.it = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The interpreter's settings are what they were, afterwards."""
    before = gc.get_threshold()
    garbage.begin()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def aged() -> weakref.ref[Ring]:
    """Garbage that is old."""
    ring = Ring()
    gc.collect(0)
    gc.collect(1)
    return weakref.ref(ring)


def test_no_full_collection_begins_by_itself() -> None:
    """However much is made."""
    full = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            full.append(info)

    gc.callbacks.append(note)
    try:
        kept = [[number] for number in range(10 * garbage.MANY)]
    finally:
        gc.callbacks.remove(note)
    assert len(kept) == 10 * garbage.MANY
    assert full == []


def test_garbage_is_collected() -> None:
    """That which got old before it was garbage."""
    ring = aged()
    assert ring() is not None
    garbage.tend()
    assert ring() is None


def test_what_is_much_is_frozen() -> None:
    """It goes when nobody refers to it; garbage that comes later is collected again."""
    frozen = gc.get_freeze_count()
    kept = [[number] for number in range(2 * garbage.MANY)]
    first = weakref.ref(gone := Ring())
    gone.it = None  # type: ignore[assignment]
    gc.collect(1)
    garbage.tend()
    assert gc.get_freeze_count() >= frozen + len(kept)
    del gone
    assert first() is None
    ring = aged()
    garbage.tend()
    assert ring() is None
