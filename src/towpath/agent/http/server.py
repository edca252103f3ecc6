# SPDX-License-Identifier: Apache-2.0
"""Serves the API until a signal says otherwise.

uvicorn under FastAPI: the API's validation and its OpenAPI description come from
the model's own dataclasses, and both are small enough for a daemon.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import uvicorn
from anyio.to_thread import current_default_thread_limiter

from towpath.agent.http.app import make_app

if TYPE_CHECKING:
    import socket

    from towpath.agent.agent import Agent

# Threads that answer with everything there is. Each may hold all services and counters
# as text: with anyio's default, 40, many scrapers at once would make the agent large.
READERS = 2

# Requests that are under way when the agent is told to go get this long.
GRACE_SECONDS = 5


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def serve(agent: Agent, listener: socket.socket) -> None:
    """Answer requests on listener until SIGTERM or SIGINT; SIGHUP reads the file again."""
    server = _Server(
        uvicorn.Config(
            make_app(agent),
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
    loop = asyncio.get_running_loop()

    def stop() -> None:
        agent.stop()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, agent.file.hurry.set)
    try:
        agent.start()
        await server.serve(sockets=[listener])
    finally:
        await agent.end()
