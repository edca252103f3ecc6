# SPDX-License-Identifier: Apache-2.0
"""One check of one backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from towpath.agent.health import command, datagram, http
from towpath.agent.health.stream import Plain, Tls, connect, opened
from towpath.agent.health.target import NoAnswerError, Seen
from towpath.model.health import CheckType

if TYPE_CHECKING:
    import socket

    from towpath.agent.health.http import Stream
    from towpath.agent.health.target import ProbePath, Target


async def check(target: Target, path: ProbePath, seen: Seen | None = None) -> None:
    """Return if the backend passes; ``seen`` gets what is found beside.

    CheckFailedError: it doesn't. CheckNotMadeError: it can't be asked.
    """
    health = target.health
    try:
        async with asyncio.timeout(health.timeout):
            if health.type is CheckType.COMMAND:
                await command.run(target)
            else:
                await _connect(target, path, seen or Seen())
    except TimeoutError:
        raise NoAnswerError(f"no answer within {health.timeout:g} s") from None


async def _connect(target: Target, path: ProbePath, seen: Seen) -> None:
    health = target.health
    with opened(path, target) as connection:
        await connect(connection, target)
        if health.type is CheckType.UDP:
            await datagram.ask(connection, target)
        elif health.type is CheckType.DNS:
            await datagram.ask_dns(connection, target)
        elif health.type is CheckType.HTTP:
            await http.ask(Plain(connection), target)
        elif health.type is CheckType.HTTPS:
            await http.ask(await _secured(connection, target, seen), target)
        elif health.type is CheckType.GRPC:
            await _ask_grpc(Plain(connection), target, "http")
        elif health.type is CheckType.GRPCS:
            await _ask_grpc(await _secured(connection, target, seen, "h2"), target, "https")


async def _ask_grpc(stream: Stream, target: Target, scheme: str) -> None:
    from towpath.agent.health.grpc import ask  # noqa: PLC0415 - most agents need no HTTP/2

    await ask(stream, target, scheme)


async def _secured(
    connection: socket.socket, target: Target, seen: Seen, protocol: str | None = None
) -> Tls:
    from towpath.agent.health.certificate import expires  # noqa: PLC0415 - nor certificates

    host = target.health.host or str(target.vip)
    tls = Tls(connection, host, verify=target.health.verify, protocol=protocol)
    await tls.handshake()
    seen.expires = expires(tls.certificate)
    return tls
