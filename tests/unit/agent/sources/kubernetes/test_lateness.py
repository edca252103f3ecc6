# SPDX-License-Identifier: Apache-2.0
"""How late a change is in force counts from the first that was told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from towpath.agent.sources.kubernetes.lateness import Lateness

if TYPE_CHECKING:
    import pytest


def test_from_the_first_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while others are put into force is with the next."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    late = Lateness()
    assert late.behind == 0
    late.told()
    now = 101
    late.told()
    assert late.behind == 1
    late.begin()
    now = 102
    late.told()
    assert late.behind == 2
    now = 103
    late.done()
    assert (late.seconds, late.times, late.behind) == (3, 1, 1)
    late.begin()
    late.done()
    assert (late.seconds, late.times, late.behind) == (4, 2, 0)


def test_one_that_failed_is_late_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the writer's thread raised: it is begun again."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    late = Lateness()
    late.told()
    late.begin()
    now = 105
    late.told()
    late.begin()
    late.done()
    assert (late.seconds, late.times) == (5, 1)
