# SPDX-License-Identifier: Apache-2.0
"""Connections of whoever has served a cluster's Services on this node before."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from towpath.agent.parts import Tracking


@asynccontextmanager
async def taking_over(tracking: Tracking | None, *, first: bool, more: bool) -> AsyncIterator[None]:
    """Keep them while services are put into force.

    ``first``: these are all. ``more``: others among them may have been somebody else's until now.
    """
    if tracking is None or not (first or more):
        yield
        return
    await tracking.begin(first=first)
    try:
        yield
    finally:
        await tracking.settle()
