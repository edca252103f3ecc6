# SPDX-License-Identifier: Apache-2.0
"""Clients that ask for a page without a pause, over connections that stay and over new ones.

Run as a program it does so until SIGTERM, and then says what came back. Arguments are the seconds
between two requests of one client, and the VIPs.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

PORT = 80
KEPT = 4  # connections to each VIP that stay for so many requests
REQUESTS_KEPT = 150
TIMEOUT = 60.0  # seconds: a lost packet costs a few, however busy the machine is
REQUEST = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: %s\r\n\r\n"


class Connection(NamedTuple):
    """One that was answered."""

    begun: float
    """time.monotonic(), which all processes of a machine share."""
    vip: str
    port: int
    """The client's."""
    backend: str


@dataclass
class Answers:
    """What came back."""

    kept: int = 0
    """Answers over connections that had one before."""
    new: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds."""
    by_backend: dict[str, int] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)

    @classmethod
    def parse(cls, said: str) -> Answers:
        """What the program says."""
        fields = json.loads(said)
        return cls(
            **fields | {"connections": [Connection(*each) for each in fields["connections"]]}
        )

    @property
    def total(self) -> int:
        """Requests that were answered."""
        return self.kept + self.new


class Clients:
    """All of them, in one loop."""

    def __init__(self, pause: float, vips: list[str]) -> None:
        self.answers = Answers()
        self._pause = pause
        self._vips = vips
        self._going = True

    async def run(self) -> None:
        """Ask until SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        asks = [
            self._ask(vip, requests)
            for vip in self._vips
            for requests in (*[REQUESTS_KEPT] * KEPT, 1, 1)
        ]
        await asyncio.gather(*asks)

    def _stop(self) -> None:
        self._going = False

    async def _ask(self, vip: str, requests: int) -> None:
        while self._going:
            begun, moment, done = time.strftime("%X"), time.monotonic(), 0
            try:
                async with asyncio.timeout(TIMEOUT):
                    reader, writer = await asyncio.open_connection(vip, PORT)
                served = ""
                try:
                    while self._going and done < requests:
                        served = await self._exchange(reader, writer, served, last=requests == 1)
                        if not done:
                            port = writer.get_extra_info("sockname")[1]
                            self.answers.connections.append(Connection(moment, vip, port, served))
                        done += 1
                        await asyncio.sleep(self._pause)
                finally:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                where = f"{vip}, connected at {begun}, after {done} requests"
                self.answers.failures.append(f"{time.strftime('%X')} {where}: {error!r}")

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        before: str,
        *,
        last: bool,
    ) -> str:
        """One request; returns who answered. ValueError: not a page, or not who did before."""
        start = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            writer.write(REQUEST % (b"close" if last else b"keep-alive"))
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = (await reader.readexactly(int(fields["content-length"]))).decode()
        if " 200 " not in head.splitlines()[0] or before not in ("", body):
            raise ValueError(f"{head.splitlines()[0]} from {body} after {before}")
        answers = self.answers
        answers.slowest = max(answers.slowest, time.monotonic() - start)
        answers.by_backend[body] = answers.by_backend.get(body, 0) + 1
        if before:
            answers.kept += 1
        else:
            answers.new += 1
        return body


def main() -> None:
    """Ask, then print the answers as JSON."""
    clients = Clients(float(sys.argv[1]), sys.argv[2:])
    asyncio.run(clients.run())
    sys.stdout.write(json.dumps(asdict(clients.answers)))


if __name__ == "__main__":
    main()
