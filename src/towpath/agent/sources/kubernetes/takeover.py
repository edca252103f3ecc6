# SPDX-License-Identifier: Apache-2.0
"""Connections of whoever has served a cluster's Services on this node before."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from towpath.agent.parts import Tracking
    from towpath.model import Service


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


def without_wait(
    put: Mapping[str, Service], tracking: Tracking | None
) -> tuple[dict[str, Service], dict[str, Service]]:
    """Return the services that needn't wait for a look at others' connections, and the rest.

    Sockets translate nothing that another has begun; and whoever had these Services until now may
    have left them already. Where pods' packets are translated all wait.
    """
    waits = tracking is not None and tracking.of_pods
    here = {name: each for name, each in put.items() if each.scope == "node" and not waits}
    return here, {name: each for name, each in put.items() if name not in here}
