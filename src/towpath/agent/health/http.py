# SPDX-License-Identifier: Apache-2.0
"""A request and the beginning of its answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import h11

from towpath import __version__
from towpath.agent.health.target import CheckFailedError
from towpath.model.kinds import has_status
from towpath.model.service import endpoint

if TYPE_CHECKING:
    from towpath.agent.health.target import Target

# Once the status is known, the server may come to the end of its answer undisturbed: this much,
# for so long. Then the connection is reset.
REST_BYTES = 1 << 16
REST_SECONDS = 0.1


class Stream(Protocol):
    """What an exchange needs of a connection."""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    async def receive(self) -> bytes:
        """Return some bytes, none at the end."""
        ...


async def ask(stream: Stream, target: Target) -> None:
    """Send the target's request. CheckFailedError unless the answer's status is a good one."""
    protocol = h11.Connection(h11.CLIENT)
    request = protocol.send(_request(target)) or b""
    await stream.send(request + (protocol.send(h11.EndOfMessage()) or b""))
    status = await _status(stream, protocol)
    wanted = target.health.status
    await _let_end(stream)
    if not has_status(wanted, status):
        raise CheckFailedError(f"status {status}; wanted: {wanted}")


def _request(target: Target) -> h11.Request:
    health = target.health
    host = health.host or endpoint(target.vip, target.port)
    return h11.Request(
        method="GET",
        target=health.path,
        headers=[
            ("Host", host),
            ("User-Agent", f"towpath/{__version__} (health check)"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ],
    )


async def _status(stream: Stream, protocol: h11.Connection) -> int:
    """The status of the answer, whatever precedes it."""
    while True:
        try:
            event = protocol.next_event()
        except h11.RemoteProtocolError as error:
            raise CheckFailedError(_complaint(protocol, error)) from error
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            protocol.receive_data(await stream.receive())
        elif not isinstance(event, h11.InformationalResponse):
            raise CheckFailedError("closed the connection without an answer")


def _complaint(protocol: h11.Connection, error: Exception) -> str:
    """What was wrong with an answer; h11 calls one that didn't come a wrong one."""
    data, ended = protocol.trailing_data
    if ended and not data:
        return "closed the connection without an answer"
    return f"no HTTP: {error}"


async def _let_end(stream: Stream) -> None:
    left = REST_BYTES
    with suppress(CheckFailedError, TimeoutError):
        async with asyncio.timeout(REST_SECONDS):
            while left > 0 and (data := await stream.receive()):
                left -= len(data)
