# SPDX-License-Identifier: Apache-2.0
"""One check of one backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from towpath.agent.health import command, datagram, http
from towpath.agent.health.stream import Plain, Tls, connect, opened
from towpath.agent.health.target import NoAnswerError
from towpath.model.health import CheckType

if TYPE_CHECKING:
    from towpath.agent.health.target import ProbePath, Target


async def check(target: Target, path: ProbePath) -> None:
    """Return if the backend passes.

    CheckFailedError: it doesn't. CheckNotMadeError: it can't be asked.
    """
    health = target.health
    try:
        async with asyncio.timeout(health.timeout):
            if health.type is CheckType.COMMAND:
                await command.run(target)
            else:
                await _connect(target, path)
    except TimeoutError:
        raise NoAnswerError(f"no answer within {health.timeout:g} s") from None


async def _connect(target: Target, path: ProbePath) -> None:
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
            host = health.host or str(target.vip)
            tls = Tls(connection, host, verify=health.verify)
            await tls.handshake()
            await http.ask(tls, target)
