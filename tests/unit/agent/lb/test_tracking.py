# SPDX-License-Identifier: Apache-2.0
"""How often it is looked at what the kernel still translates of before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from towpath.agent.lb import tracking
from towpath.agent.lb.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Of a look that has taken so long; the kernel keeps a flow of UDP for so long."""

    def made(took: float, *, of_udp: bool, udp_seconds: int = 30) -> float:
        monkeypatch.setattr(tracking, "udp_seconds", lambda: udp_seconds)
        tracked: Any = SimpleNamespace(takes=False, of_udp=of_udp)
        return Tracking(tracked, cast("Any", None))._pause(took)

    return made


def test_a_look_takes_a_small_part_of_the_time(pause: Callable[..., float]) -> None:
    """However many connections there are."""
    assert pause(0.01, of_udp=True) == 5
    assert pause(0.4, of_udp=True) == 8
    assert pause(3.0, of_udp=False) == 60


def test_flows_of_udp_are_kept_before_the_kernel_forgets_them(
    pause: Callable[..., float],
) -> None:
    """One that has begun to pass right after a look is there at the next one."""
    for took in (0.0, 0.01, 1.0, 5.0):
        for seconds in (3, 10, 30, 300):
            assert pause(took, of_udp=True, udp_seconds=seconds) <= seconds / 3
