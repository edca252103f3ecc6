# SPDX-License-Identifier: Apache-2.0
"""Where a benchmark runs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


def on_one_cpu() -> AbstractContextManager[None]:
    """Keep this thread on one CPU, the last of those it may use."""
    return on_cpu(max(os.sched_getaffinity(0)))


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """Keep this thread on that CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
