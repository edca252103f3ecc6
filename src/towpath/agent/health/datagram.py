# SPDX-License-Identifier: Apache-2.0
"""A datagram, and what comes back."""

from __future__ import annotations

import asyncio
import secrets
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.agent.health.stream import reason
from towpath.agent.health.target import CheckFailedError
from towpath.model.kinds import payload

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from towpath.agent.health.target import Target

TRIES = 3
"""So often a datagram is sent within a check's timeout: one that is lost is no failure."""
_LARGEST = 65535
_SHOWN = 40

# RFC 1035, 4.1.1: of the header's second word, and codes of answers.
_RESPONSE, _RECURSION_DESIRED, _CODE = 0x8000, 0x0100, 0xF
_HEADER = struct.Struct("!6H")
_CODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_GOOD = (0, 3)
_A, _NS, _IN = 1, 2, 1


async def ask(connection: socket.socket, target: Target) -> None:
    """Send what the target is to be sent. CheckFailedError unless the answer has what is wanted."""
    wanted = payload(target.health.expect)
    answer = await _exchange(connection, payload(target.health.send), target, _any)
    if wanted not in answer:
        shown = ascii(answer[:_SHOWN])[1:]
        raise CheckFailedError(f"the answer is {shown}; wanted: {target.health.expect}")


async def ask_dns(connection: socket.socket, target: Target) -> None:
    """Ask the target's question. CheckFailedError unless the server can answer it."""
    number = secrets.randbelow(1 << 16)

    def is_ours(answer: bytes) -> bool:
        if len(answer) < _HEADER.size:
            return False
        own, flags, *_ = _HEADER.unpack_from(answer)
        return bool(own == number and flags & _RESPONSE)

    question = question_for(target.health.query, number)
    answer = await _exchange(connection, question, target, is_ours)
    code = _HEADER.unpack_from(answer)[1] & _CODE
    if code not in _GOOD:
        raise CheckFailedError(f"answers {_CODES[code] if code < len(_CODES) else f'code {code}'}")


def question_for(name: str, number: int) -> bytes:
    """Return a query for a name's A, of the root for NS (RFC 1035, 4.1), with an ID."""
    labels = [each.encode("ascii") for each in name.split(".") if each]
    encoded = b"".join(bytes((len(each),)) + each for each in labels) + b"\0"
    header = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0)
    return header + encoded + struct.pack("!HH", _A if labels else _NS, _IN)


def _any(answer: bytes) -> bool:
    del answer
    return True


async def _exchange(
    connection: socket.socket, data: bytes, target: Target, is_ours: Callable[[bytes], bool]
) -> bytes:
    """Send it until there is an answer that is ours. CheckFailedError: nobody is there.

    To be cancelled when the check's time is over.
    """
    loop = asyncio.get_running_loop()
    try:
        while True:
            await loop.sock_sendall(connection, data)
            with suppress(TimeoutError):
                async with asyncio.timeout(target.health.timeout / TRIES):
                    while not is_ours(answer := await loop.sock_recv(connection, _LARGEST)):
                        pass
                    return answer
    except OSError as error:
        raise CheckFailedError(f"no answer: {reason(error)}") from error
