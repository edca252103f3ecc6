# SPDX-License-Identifier: Apache-2.0
"""Many small servers, and clients that count what fails.

    load.py serve PORTS ADDRESS...        one on each; "down ADDRESS" and "up ADDRESS" on stdin
    load.py ask ADDRESS PORT SECONDS RATE a connection for each request, and some that are kept

What clients got is said as JSON. Standard library only: it is run by whatever Python there is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress

TIMEOUT = 3.0
KEPT = 32
"""Connections that are kept, and asked on ten times a second."""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while await reader.readline():
            writer.write(b"!\n")
            await writer.drain()
    writer.close()


class _Servers:
    """A server down is as one whose process has ended: it refuses, and ends what it had."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._up: dict[str, list[asyncio.Server]] = {}
        self._talks: dict[str, set[asyncio.StreamWriter]] = {}

    async def up(self, address: str) -> None:
        """Serve at an address."""
        talks = self._talks.setdefault(address, set())

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talks.add(writer)
            await _answer(reader, writer)
            talks.discard(writer)

        self._up[address] = [
            await asyncio.start_server(answer, address, each, backlog=512) for each in self._ports
        ]

    def down(self, address: str) -> None:
        """Serve there no more."""
        for each in self._up.pop(address, ()):
            each.close()
        for talk in tuple(self._talks[address]):
            talk.close()

    async def run(self, addresses: list[str]) -> None:
        """Serve, and do what is said."""
        for each in addresses:
            await self.up(each)
        print("ready", flush=True)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        await loop.connect_read_pipe(lambda: protocol, sys.stdin)
        while line := (await reader.readline()).decode():
            verb, address = line.split()
            if verb == "down":
                self.down(address)
            elif address not in self._up:
                await self.up(address)
            print("done", flush=True)


class _Clients:
    """What they have got."""

    def __init__(self, address: str, port: int, seconds: float) -> None:
        self._end = (address, port)
        self._until = time.monotonic() + seconds
        self.requests = 0
        self.failed: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        """Connections that were kept and ended otherwise than by their server's close."""
        self.closed = 0
        self.took: list[float] = []

    async def _once(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(*self._end)
                writer.write(b"?\n")
                said = await reader.readline()
            writer.close()
            if not said:
                self.failed["closed"] += 1
        except OSError as error:  # TimeoutError is one
            self.failed[type(error).__name__] += 1
        self.requests += 1
        self.took.append(time.monotonic() - began)

    async def requests_at(self, rate: float) -> None:
        """Begin so many a second."""
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while due < self._until:
                await asyncio.sleep(max(0, due - time.monotonic()))
                group.create_task(self._once())
                due += 1 / rate

    async def keep_one(self) -> None:
        """Ask on one connection again and again."""
        while time.monotonic() < self._until:
            try:
                async with asyncio.timeout(TIMEOUT):
                    reader, writer = await asyncio.open_connection(*self._end)
                while time.monotonic() < self._until:
                    async with asyncio.timeout(TIMEOUT):
                        writer.write(b"?\n")
                        if not await reader.readline():
                            self.closed += 1
                            break
                    await asyncio.sleep(0.1)
                writer.close()
            except OSError as error:
                self.cut[type(error).__name__] += 1
                await asyncio.sleep(0.1)

    async def run(self, rate: float) -> None:
        """All of it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.requests_at(rate))
            for _ in range(KEPT):
                group.create_task(self.keep_one())
        took = sorted(self.took) or [0.0]
        found = {
            "requests": self.requests,
            "failed": dict(self.failed),
            "cut": dict(self.cut),
            "closed": self.closed,
            "p50_ms": round(1000 * took[len(took) // 2], 2),
            "p99_ms": round(1000 * took[int(len(took) * 0.99)], 2),
        }
        print(json.dumps(found))


def main() -> None:
    """As the command line says."""
    verb, *words = sys.argv[1:]
    if verb == "serve":
        ports = [int(each) for each in words[0].split(",")]
        asyncio.run(_Servers(ports).run(words[1:]))
        return
    address, port, seconds, rate = words
    asyncio.run(_Clients(address, int(port), float(seconds)).run(float(rate)))


if __name__ == "__main__":
    main()
