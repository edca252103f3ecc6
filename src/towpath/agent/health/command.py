# SPDX-License-Identifier: Apache-2.0
"""A program whose exit status says whether a backend is well."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from towpath.agent.health.target import CheckFailedError, CheckNotMadeError
from towpath.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.agent.health.target import Target

# Of what a command says: the end, which a message is made of.
KEPT = 512


async def run(target: Target) -> None:
    """Run the target's command; CheckFailedError unless it exits with 0.

    If this is cancelled, it is killed with all processes that it has started.
    """
    with _output() as (said, end):
        try:
            process = await asyncio.create_subprocess_exec(
                *target.health.command,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                env=os.environ | environment(target),
                start_new_session=True,
            )
        except OSError as error:
            raise CheckNotMadeError(f"{target.health.command[0]}: {error.strerror}") from error
        finally:
            os.close(end)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            _kill(process.pid)
            await process.wait()
            raise
        if status:
            raise CheckFailedError(": ".join(filter(None, (_meaning(status), said.last_line()))))


def environment(target: Target) -> dict[str, str]:
    """What a command is told of the backend that it checks."""
    return {
        "TOWPATH_SERVICE": target.service,
        "TOWPATH_VIP": str(target.vip),
        "TOWPATH_PORT": str(target.port),
        "TOWPATH_PROTOCOL": str(target.key.protocol),
        "TOWPATH_BACKEND": str(target.backend),
    }


class _Said:
    """The end of what comes out of a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self._end = b""

    def read(self) -> None:
        """Take what is there; at the end, look no more."""
        with suppress(BlockingIOError):
            while data := os.read(self.pipe, 1 << 16):
                self._end = (self._end + data)[-KEPT:]
            asyncio.get_running_loop().remove_reader(self.pipe)

    def last_line(self) -> str:
        """The last line, as far as it is text, with escapes for what can't be seen."""
        self.read()
        lines = self._end.decode(errors="replace").strip().splitlines()
        return printable(lines[-1]) if lines else ""


@contextmanager
def _output() -> Iterator[tuple[_Said, int]]:
    """A pipe that is emptied in the block; its writing end is the block's to close."""
    loop = asyncio.get_running_loop()
    try:
        pipe, end = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise CheckNotMadeError(str(error)) from error
    os.set_blocking(pipe, False)
    said = _Said(pipe)
    loop.add_reader(pipe, said.read)
    try:
        yield said, end
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)


def _kill(leader: int) -> None:
    """Kill a command and what it has started: it leads a group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _meaning(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"
