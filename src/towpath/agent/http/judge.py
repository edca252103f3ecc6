# SPDX-License-Identifier: Apache-2.0
"""Reads and checks what requests hold, of any size, while the event loop goes on.

A body up to SMALL is checked on a thread; the JSON parser then keeps others waiting for
milliseconds. A larger one goes to a process of its own as it comes, one at a time: neither its
text nor its objects are ever here, but for what is right in the end.
"""

from __future__ import annotations

import asyncio
import pickle
import resource
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.agent.errors import AgentError
from towpath.agent.http.wishes import judge, too_much
from towpath.children import expendable, python

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from towpath.agent.http.wishes import Judged

SMALL = 1 << 18  # bytes
MAX_BODY = 1 << 24
"""Bytes of a request's body: 50,000 services with three backends each."""
SECONDS = 60.0
"""In which a process has to have checked one."""
AT_ONCE = 2
"""Small bodies that are checked at one time."""
_MEMORY = 1 << 29


class Judge:
    """Judges bodies. For the event loop."""

    def __init__(self) -> None:
        self._small = asyncio.Semaphore(AT_ONCE)
        self._large = asyncio.Lock()

    async def judged(self, kind: str, body: AsyncIterator[bytes]) -> Judged | None:
        """What a body is for, None if there is none. AgentError; OSError."""
        pieces, size = [], 0
        async for piece in body:
            pieces.append(piece)
            size += len(piece)
            if size > SMALL:
                async with self._large:
                    return await _elsewhere(kind, pieces, body)
        if not size:
            return None
        async with self._small:
            return await asyncio.to_thread(judge, kind, b"".join(pieces))


async def _elsewhere(kind: str, begun: list[bytes], body: AsyncIterator[bytes]) -> Judged:
    """Have a process check a body."""
    child = await asyncio.create_subprocess_exec(
        *python(__name__, kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said = asyncio.create_task(_output(child))
    try:
        await _hand_over(child, begun, body)
        async with asyncio.timeout(SECONDS):
            output = await asyncio.shield(said)
            status = await child.wait()
    except TimeoutError:
        return too_much(f"than {SECONDS:g} seconds")
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await asyncio.gather(said, child.wait(), _closed(child))
    if status:
        raise AgentError(f"the body could not be checked: the process ended with {status}")
    found: Judged = await asyncio.to_thread(pickle.loads, output)
    return found


async def _output(child: Process) -> bytes:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    return await child.stdout.read()


async def _hand_over(child: Process, begun: list[bytes], body: AsyncIterator[bytes]) -> None:
    """Write a body to a process as it comes."""
    assert child.stdin is not None  # noqa: S101 - a pipe was asked for
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # its exit says why
            while begun:
                child.stdin.write(begun.pop(0))
            async for piece in body:
                child.stdin.write(piece)
                await child.stdin.drain()
    finally:
        child.stdin.close()


async def _closed(child: Process) -> None:
    """Wait until nothing is on its way to a process; it may not have wanted all of it."""
    assert child.stdin is not None  # noqa: S101 - a pipe was asked for
    with suppress(BrokenPipeError, ConnectionResetError):
        await child.stdin.wait_closed()


def main() -> None:
    """Judge what comes on standard input, and write what was found to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    expendable()
    found = judge(sys.argv[1], sys.stdin.buffer.read())
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    main()
