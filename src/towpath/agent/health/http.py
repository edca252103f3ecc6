# SPDX-License-Identifier: Apache-2.0
"""A request and the beginning of its answer.

The status line and the end of the header decide. What else an answer may have wrong, such as the
name of a header or how its body is framed, clients pass over as well, or take as it is meant:
a parser that insists would find a backend down that serves everybody.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

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


HEADER_BYTES = 1 << 16
_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-9][0-9]{2})(?: [^\n]*)?\r?", re.ASCII)
_END = re.compile(rb"\n\r?\n")
_SHOWN = 40
# Others below 200 precede the answer (RFC 9110, 15.2).
_SWITCHING = 101


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
    await stream.send(_request(target))
    status = await _status(stream)
    wanted = target.health.status
    await _let_end(stream)
    if not has_status(wanted, status):
        raise CheckFailedError(f"status {status}; wanted: {wanted}")


def _request(target: Target) -> bytes:
    health = target.health
    headers = {
        "Host": health.host or endpoint(target.vip, target.port),
        "User-Agent": f"towpath/{__version__} (health check)",
        "Accept": "*/*",
        "Connection": "close",
    }
    lines = [f"GET {health.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class _Head(NamedTuple):
    """A status, and what came after its header."""

    status: int
    rest: bytes


async def _status(stream: Stream) -> int:
    """The status of the answer, whatever precedes it. CheckFailedError."""
    head = await _head(stream, b"")
    while head.status < 200 and head.status != _SWITCHING:  # noqa: PLR2004 - RFC 9110, 15.2
        head = await _head(stream, head.rest)
    return head.status


async def _head(stream: Stream, came: bytes) -> _Head:
    data, status, searched = bytearray(came), None, 0
    while True:
        if status is None and (line_end := data.find(b"\n")) >= 0:
            status = _code(bytes(data[:line_end]))
        end = _END.search(data, searched)
        if status is not None and end and end.end() <= HEADER_BYTES:
            return _Head(status, bytes(data[end.end() :]))
        if len(data) > HEADER_BYTES:
            raise CheckFailedError(f"no HTTP: its header has more than {HEADER_BYTES >> 10} KiB")
        searched = max(0, len(data) - 2)
        piece = await stream.receive()
        if not piece:
            what = "within the header" if data else "without an answer"
            raise CheckFailedError(f"{'no HTTP: ' if data else ''}closed the connection {what}")
        data += piece


def _code(line: bytes) -> int:
    if found := _LINE.fullmatch(line):
        return int(found[1])
    raise CheckFailedError(f"no HTTP: the answer begins with {ascii(line[:_SHOWN])[1:]}")


async def _let_end(stream: Stream) -> None:
    left = REST_BYTES
    with suppress(CheckFailedError, TimeoutError):
        async with asyncio.timeout(REST_SECONDS):
            while left > 0 and (data := await stream.receive()):
                left -= len(data)
