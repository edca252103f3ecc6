# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, with a limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from towpath.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

# Between two looks; short beside anything that is waited for.
INTERVAL = 0.01


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Return when the condition holds; LabError naming what was waited for if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(INTERVAL)
