# SPDX-License-Identifier: Apache-2.0
"""Connections that others translate to services which are balanced here from now on.

Flows are taken over in two steps, `begin` before services are in force and `settle` when they are
(:mod:`towpath.datapath.snat.tracked` says why). A source that knows when all of its services are
there calls both; without one it is settled after a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.conntrack_flows import udp_seconds

if TYPE_CHECKING:
    from towpath.agent.writer import Writer
    from towpath.datapath.snat.tracked import Tracked

log = logging.getLogger(__name__)

SECONDS = 5.0
PAUSES = 20
"""Between two looks at what has ended: so long, and so many times what a look has taken."""
UDP_PART = 1 / 3
"""And not more than this of the time after which the kernel forgets a flow of UDP, while there are
any: those that have begun to pass have to be kept before, or they would pass to nobody."""
MOST_SECONDS = 30.0
"""So long what isn't known is others', if no source says that it has handed in its services."""


class Tracking:
    """Follows ``tracked``, which the writer's thread alone changes. For the event loop."""

    def __init__(self, tracked: Tracked, writer: Writer) -> None:
        self._tracked = tracked
        self._writer = writer
        self._fresh = tracked.takes
        """No program was on any device before: others have served what comes in, if anybody has."""
        self._until: float | None = time.monotonic() + MOST_SECONDS if self._fresh else 0.0
        """When to settle without being told; None: who has begun will."""
        self._told = ""
        self._left = 0

    @property
    def of_pods(self) -> bool:
        """Whether pods' packets are translated, so that services of this node are asked about."""
        return self._tracked.of_pods

    async def begin(self, *, first: bool) -> None:
        """Services come into force that others may have served. To be settled.

        ``first``: these are all, of a source that has handed in nothing before.
        """
        self._until = None
        if first and self._fresh:
            self._fresh = False
            await self._writer.run(self._tracked.take)
        else:
            await self._writer.run(self._fill)

    def _fill(self) -> None:
        try:
            self._tracked.fill()
        except KernelError as error:
            self._tell(error)

    async def settle(self) -> None:
        """They are in force: what others don't translate is balanced here."""
        served = await self._writer.run(self._tracked.served)
        await asyncio.to_thread(self._look, served)
        left = await self._writer.run(self._tracked.conclude)
        if left and not self._left:
            log.info("connections of before go on as the kernel translates them: %d flows", left)
        elif self._left and not left:
            log.info("the last connection of before is over")
        self._left = left
        self._until = 0.0

    def _look(self, served: set[tuple[bytes, bytes, int]]) -> None:
        before, found = self._tracked.known(), []
        try:
            found = self._tracked.listed()
        except KernelError as error:
            self._tell(error)
        self._tracked.settle(found, before, served)

    def _tell(self, error: KernelError) -> None:
        if str(error) != self._told:
            log.warning("connections of before, if there are any, end: %s", error)
        self._told = str(error)

    async def run(self) -> None:
        """Settle what nobody does, and forget what is over, until cancelled."""
        while True:
            seconds = 0.0
            due = self._until is not None and time.monotonic() >= self._until
            if due and self._tracked.any:
                begun = time.monotonic()
                await self.settle()
                seconds = time.monotonic() - begun
            await asyncio.sleep(self._pause(seconds))

    def _pause(self, seconds: float) -> float:
        """Until the next look, when one has taken so long."""
        pause = max(SECONDS, PAUSES * seconds)
        return min(pause, UDP_PART * udp_seconds()) if self._tracked.of_udp else pause
