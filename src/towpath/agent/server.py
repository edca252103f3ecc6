# SPDX-License-Identifier: Apache-2.0
"""Serves the API until a signal says otherwise, and follows the configuration file.

uvicorn under FastAPI: the API's validation and its OpenAPI description come from
the model's own dataclasses, and both are small enough for a daemon.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from anyio.to_thread import current_default_thread_limiter

from towpath.agent import exhaustion, systemd
from towpath.agent.api import make_app
from towpath.agent.exhaustion import ExhaustionWatch
from towpath.agent.host import REFUSALS
from towpath.agent.watch import INTERVAL
from towpath.model.snat import NO_SNAT

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from towpath.agent.host import Host

log = logging.getLogger(__name__)

# Threads that answer with everything there is. Each may hold all services and counters
# as text: with anyio's default, 40, many scrapers at once would make the agent large.
READERS = 2

# Between two counts of the flows of backends that are leaving: so long, and so many times
# the CPU time of a count. Not the time until it is done: where others have the CPU that is
# long, and says nothing of what counting costs.
REAP_SECONDS = 1.0
REAP_PAUSES = 20

# Requests that are under way when the agent is told to go get this long.
GRACE_SECONDS = 5

# Before what failed unforeseen is begun again.
AGAIN_SECONDS = 1.0


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def serve(host: Host, listener: socket.socket) -> None:
    """Answer requests on listener until SIGTERM or SIGINT; SIGHUP reads the file again."""
    server = _Server(
        uvicorn.Config(
            make_app(host),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    current_default_thread_limiter().total_tokens = READERS
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        host.captures.stop_all("the agent ends")
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hurry.set)
    work = [partial(_follow, host, hurry)]
    work += [partial(each, host) for each in (_reap, _age_flows, _warn)]
    tasks = [asyncio.create_task(each) for each in (*map(_lasting, work), host.monitor.run())]
    try:
        systemd.ready(host.summary())
        await server.serve(sockets=[listener])
    finally:
        systemd.stopping()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _lasting(work: Callable[[], Awaitable[None]]) -> None:
    """Do work that goes on for as long as the agent does, also when it fails unforeseen.

    A task that has ended would be missed by nobody until what it does is needed.
    """
    while True:
        try:
            await work()
        except Exception:
            log.exception("a part of the agent failed; it is begun again")
        else:
            return
        await asyncio.sleep(AGAIN_SECONDS)


async def _warn(host: Host) -> None:
    """Say in the log when translations run out."""
    if host.controller.config.snat == NO_SNAT:
        return
    verdicts = host.controller.datapath.verdicts
    watch = ExhaustionWatch(await host.writer.run(verdicts), time.monotonic)
    while True:
        await asyncio.sleep(exhaustion.INTERVAL)
        watch.look(await host.writer.run(verdicts))


async def _reap(host: Host) -> None:
    """Let backends go that were removed, when their flows have ended.

    Counting goes through the whole flow table: it takes a small part of the time.
    """
    while True:
        seconds = 0.0
        try:
            if host.controller.leaving:
                seconds = await host.reap()
        except REFUSALS:
            log.exception("backends that were removed stay; tried again")
        await asyncio.sleep(max(REAP_SECONDS, REAP_PAUSES * seconds))


async def _follow(host: Host, hurry: asyncio.Event) -> None:
    """Take the file over whenever it changes, or at once when hurry is set.

    Also when it was refused for contradicting services that are others by now.
    """
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), INTERVAL)
        if hurry.is_set() or host.file.watch.changed() or host.may_fit_now():
            hurry.clear()
            systemd.reloading()
            await host.reload()
            systemd.ready(host.summary())


async def _age_flows(host: Host) -> None:
    """Read the flow table often enough for its ages to be right though nobody asks."""
    while True:
        await asyncio.sleep(host.flow_span / 4)
        await asyncio.to_thread(host.age_flows)
