# SPDX-License-Identifier: Apache-2.0
"""Waiting for a file descriptor, in the event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def readable(fd: int, seconds: float) -> None:
    """Return when there is something to read, or after so many seconds."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(ready.wait(), seconds)
    finally:
        loop.remove_reader(fd)
