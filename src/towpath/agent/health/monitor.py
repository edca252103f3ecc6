# SPDX-License-Identifier: Apache-2.0
"""Checks every backend that is to be checked, again and again, and acts on what it finds."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from towpath.agent.health.check import check
from towpath.agent.health.delay import Delays
from towpath.agent.health.log import log_change, log_services
from towpath.agent.health.registry import Registry, Targets
from towpath.agent.health.target import CheckFailedError, CheckNotMadeError, NoAnswerError, Seen
from towpath.core.health import step, unable
from towpath.model.health import CheckType, checked_address

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from towpath.agent.health.registry import Id
    from towpath.agent.health.target import ProbePath, Target
    from towpath.agent.lb.controller import Controller
    from towpath.agent.lb.desired import Desired
    from towpath.agent.writer import Writer
    from towpath.datapath.address import Address

    Task: TypeAlias = asyncio.Task[None]

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks at what is desired and at what checks have found."""
SPREAD_SECONDS = 0.005
"""First checks are spread over so much for each backend, at most over the interval."""
AGAIN_SECONDS = 5.0
"""After so long what could not be put into force is tried again."""


class Monitor:
    """Runs the checks of a controller's services. `run` goes on until it is cancelled.

    ``doubt`` is told of backends that are up and have not answered at all: perhaps their next hop
    has another MAC address by now. ``found_down`` is told of a service's backend that is down from
    now on. Neither may block. ``foreign``: other programs check as well.

    ``registry`` has what was found, ``delays`` how late checks began; any thread may read them.
    """

    def __init__(
        self,
        controller: Controller,
        writer: Writer,
        path: ProbePath,
        *,
        concurrent: int,
        foreign: bool = False,
        doubt: Callable[[Address], None] = lambda _: None,
        found_down: Callable[[str, Address], None] = lambda *_: None,
    ) -> None:
        self.registry = Registry()
        self.delays = Delays()
        self._trouble: str | None = None
        self._controller = controller
        self._writer = writer
        self._path = path
        self._foreign = foreign
        self._doubt = doubt
        self._found_down = found_down
        self._limit = asyncio.Semaphore(concurrent)
        self._targets = Targets()
        self._tasks: dict[Id, Task] = {}
        self._dead: dict[Id, str] = {}
        self._seen: Desired | None = None
        self._news = asyncio.Event()

    @property
    def trouble(self) -> str | None:
        """Why checks can't be made or their results not put into force; None: all is well."""
        return self._trouble or next(iter(self._dead.values()), None)

    async def run(self) -> None:
        """Follow what is desired, check, and put into force what was found."""
        try:
            while True:
                wait = LOOK_SECONDS
                try:
                    await self._follow()
                    await self._put_into_force()
                    self._trouble = None
                except Exception as error:
                    wait = AGAIN_SECONDS
                    trouble = f"health checks: {str(error) or type(error).__name__}"
                    if self._trouble != trouble:
                        log.exception("health checks")
                    self._trouble = trouble
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), wait)
                self._news.clear()
        finally:
            await self._stop(list(self._tasks))

    # ---- What is desired -------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Have exactly those targets checked that are desired now."""
        desired, down = self._controller.judged
        if desired is self._seen:
            return
        wanted = self._targets.of(desired.checked())
        await self._stop([key for key in self._tasks if self._changed(key, wanted.get(key))])
        await self._open(wanted.values())
        self.registry.keep(wanted, down, time.time())
        new = [key for key in wanted if key not in self._tasks]
        for key in new:
            watch = self._watch(key, wanted[key], len(new) * SPREAD_SECONDS)
            self._tasks[key] = asyncio.create_task(watch)
            self._tasks[key].add_done_callback(partial(self._ended, key))
        self._seen = desired
        self._dead.clear()

    def _ended(self, key: Id, task: Task) -> None:
        """Begin again, after a while, what has ended though nobody wanted that."""
        if self._tasks.get(key) is not task:
            return
        del self._tasks[key]
        error = None if task.cancelled() else task.exception()
        what = f"checks of backend {key.backend} for {key.service} have ended: {error!r}"
        log.error(what, exc_info=error)
        self._dead[key] = what
        asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._seen = None
        self._news.set()

    def _changed(self, key: Id, now: Target | None) -> bool:
        before = self.registry.get(key).target
        return now is not before and now != before

    async def _open(self, wanted: Collection[Target]) -> None:
        vips = {each.vip for each in wanted if each.health.type is not CheckType.COMMAND}
        if self._foreign:
            # Others may check any service's.
            services = self._controller.desired.services()
            others = {checked_address(each.vip) for each in services}
            await self._writer.run(self._path.open, vips, others)
        elif vips:
            await self._writer.run(self._path.open, vips)
        else:
            await self._writer.run(self._path.close)

    async def _stop(self, keys: Collection[Id]) -> None:
        gone = [self._tasks.pop(key) for key in keys]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)

    # ---- Checks ----------------------------------------------------------------------------------

    async def _watch(self, key: Id, target: Target, spread: float) -> None:
        """Check one target for as long as it is desired."""
        loop, interval = asyncio.get_running_loop(), target.health.interval
        # Apart from each other: checks that begin together would also go on together.
        due = loop.time() + random.uniform(0, min(interval, spread))  # noqa: S311
        while True:
            await asyncio.sleep(due - loop.time())
            async with self._limit:
                self.delays.note(loop.time() - due)
                await self._check(key, target)
            due = max(due + interval, loop.time())

    async def _check(self, key: Id, target: Target) -> None:
        before, seen = self.registry.get(key), Seen()
        try:
            await check(target, self._path, seen)
            result = None
        except CheckFailedError as error:
            result = str(error)
            if isinstance(error, NoAnswerError) and before.standing.state.serves:
                self._doubt(target.backend)
        except CheckNotMadeError as error:
            self.registry.put(key, before.unable(unable(before.standing, str(error), time.time())))
            return
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if before.standing.error != told:
                log.exception("check of %s for service %s", target.backend, target.service)
            self.registry.put(key, before.unable(unable(before.standing, told, time.time())))
            return
        standing = step(before.standing, result, target.health, time.time())
        self.registry.put(key, before.moved(standing, seen.expires))
        if standing.state.serves != before.standing.state.serves:
            log_change(target, standing)
            if not standing.state.serves:
                self._found_down(target.service, target.backend)
            self._news.set()

    # ---- What follows ----------------------------------------------------------------------------

    async def _put_into_force(self) -> None:
        down = self.registry.down()
        before = self._controller.down
        if down != before:
            await self._writer.run(self._controller.set_down, down, self._seen)
            now = self._controller.judged
            log_services(now.desired.services(), before, now.down)
