# SPDX-License-Identifier: Apache-2.0
"""Nothing is used again before its readers are through."""

from __future__ import annotations

from towpath.datapath.lb.grace import Reclaimer


def test_waits_once_then_frees_all_in_order() -> None:
    """One wait serves everything that was deferred before it."""
    seen: list[str] = []
    reclaimer = Reclaimer(lambda: seen.append("wait"))
    reclaimer.retire(lambda: seen.append("first"))
    reclaimer.retire(lambda: seen.append("second"))
    assert seen == []
    assert reclaimer.reclaim()
    assert seen == ["wait", "first", "second"]


def test_does_not_wait_for_nothing() -> None:
    """A second flush finds nothing, and says so without a wait."""
    waits: list[int] = []
    reclaimer = Reclaimer(lambda: waits.append(1))
    assert not reclaimer.reclaim()
    reclaimer.retire(lambda: None)
    assert reclaimer.reclaim()
    assert not reclaimer.reclaim()
    assert waits == [1]


def test_what_is_deferred_during_a_flush_is_not_freed_by_it() -> None:
    """Its readers may have begun after the wait."""
    seen: list[str] = []
    reclaimer = Reclaimer(lambda: seen.append("wait"))
    reclaimer.retire(lambda: reclaimer.retire(lambda: seen.append("late")))
    reclaimer.reclaim()
    assert seen == ["wait"]
    reclaimer.reclaim()
    assert seen == ["wait", "wait", "late"]
