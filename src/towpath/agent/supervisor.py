# SPDX-License-Identifier: Apache-2.0
"""Background tasks that don't die silently.

A task that ends with an error is logged once, told in the agent's health, and begun again
after a pause; when it has gone on for a while it is well again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""From an error to the next try, and how long a task goes on before it counts as well."""


class Supervisor:
    """Runs tasks until it is stopped. For the event loop only, but for ``troubles``."""

    def __init__(self, pause: float = PAUSE_SECONDS) -> None:
        self._pause = pause
        self._tasks: list[asyncio.Task[None]] = []
        self._troubles: dict[str, str] = {}

    @property
    def troubles(self) -> Iterable[str]:
        """What is wrong with tasks, for any thread."""
        return tuple(self._troubles.values())

    def start(
        self, name: str, work: Callable[[], Awaitable[None]], pause: float | None = None
    ) -> asyncio.Task[None]:
        """Run a task. One that returns is done. ``pause``: another than the others have."""
        keep = self._keep(name, work, self._pause if pause is None else pause)
        task = asyncio.create_task(keep, name=name)
        self._tasks.append(task)
        return task

    async def stop(self) -> None:
        """Cancel all tasks and wait for them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            well = asyncio.get_running_loop().call_later(pause, self._well, name)
            try:
                return await work()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                trouble = f"{name}: {str(error) or type(error).__name__}"
                if self._troubles.get(name) != trouble:
                    log.exception("%s: tried again every %g s", name, pause)
                self._troubles[name] = trouble
            finally:
                well.cancel()
            await asyncio.sleep(pause)

    def _well(self, name: str) -> None:
        if self._troubles.pop(name, None):
            log.info("%s: well again", name)


def _is_cancelled() -> bool:
    """Whether somebody has cancelled this task: what it waits for may have been instead."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
