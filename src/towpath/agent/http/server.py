# SPDX-License-Identifier: Apache-2.0
"""Serves the API and the metrics until a signal says otherwise.

uvicorn under FastAPI: the API's validation and its OpenAPI description come from
the model's own dataclasses, and both are small enough for a daemon.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter

from towpath.agent.http.accept import accept
from towpath.agent.http.app import make_app, make_metrics_app, warm
from towpath.agent.http.connection import Connection, Connections
from towpath.agent.http.scrapes import Scrapes
from towpath.agent.signals import END, RELOAD

if TYPE_CHECKING:
    import socket

    from towpath.agent.agent import Agent
    from towpath.agent.signals import Signals

# Threads that answer with a part of what there is, such as a page of flows.
READERS = 2

API_CONNECTIONS = 64
METRICS_CONNECTIONS = 32
"""At one time. Those without a request under way make room for others."""

# Requests that are under way when the agent is told to go get this long.
GRACE_SECONDS = 5


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def _config(app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    config.load()
    return config


async def serve(
    agent: Agent, signals: Signals, api: socket.socket, metrics: socket.socket | None = None
) -> None:
    """Answer requests until SIGTERM or SIGINT; SIGHUP reads the file again.

    ``api`` and ``metrics``: listening sockets that don't block.
    """
    scrapes = Scrapes(agent.metrics)
    app = make_app(agent, scrapes)
    await warm(app)
    config = _config(app)
    server = _Server(config)
    current_default_thread_limiter().total_tokens = READERS
    loop = asyncio.get_running_loop()

    doors: list[asyncio.Task[None]] = []

    def listen(name: str, at: socket.socket, config: uvicorn.Config, limit: int) -> None:
        make = partial(Connection, config, server.server_state, Connections(limit), loop)
        door = agent.supervisor.start(name, partial(accept, at, make), pause=1.0)
        door.add_done_callback(lambda _: at.close())
        doors.append(door)

    def stop() -> None:
        agent.stop()
        for door in doors:
            door.cancel()
        server.should_exit = True

    def told() -> None:
        for number in signals.read():
            if number == RELOAD:
                agent.file.hurry.set()
            elif number in END:
                agent.anew = False
                stop()

    agent.end_by = stop
    signals.wait()
    loop.add_reader(signals, told)
    try:
        agent.start()
        listen("connections to api.socket", api, config, API_CONNECTIONS)
        if metrics is not None:
            on_metrics = _config(make_metrics_app(scrapes))
            listen("connections to metrics.listen", metrics, on_metrics, METRICS_CONNECTIONS)
        # Without sockets: it looks after the connections that are made above.
        await server.serve(sockets=[])
    finally:
        loop.remove_reader(signals)
        await agent.end()
