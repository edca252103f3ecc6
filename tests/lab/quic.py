# SPDX-License-Identifier: Apache-2.0
"""Either end of a QUIC connection, by aioquic.

``quic.py server ADDRESS CERTIFICATE KEY`` or ``quic.py client ADDRESS BYTES STREAMS``
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

PORT = 4433
_ALPN = ["towpath"]


def say(what: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Telling(QuicConnectionProtocol):
    """Says from where datagrams come, each address and port once."""

    seen: set[tuple[Any, ...]] = set()  # noqa: RUF012 -- of all connections

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """Say so."""
        if addr not in self.seen:
            self.seen.add(addr)
            say(addr[0])
        super().datagram_received(data, addr)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what has come."""
    writer.write(await reader.read())
    writer.write_eof()


async def server(at: str, certificate: str, key: str) -> None:
    """Serve until it is ended."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=_ALPN)
    configuration.load_cert_chain(certificate, key)
    handlers: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(echo(reader, writer)))

    await serve(
        at, PORT, configuration=configuration, stream_handler=begin, create_protocol=Telling
    )
    say("ready")
    await asyncio.Event().wait()


async def client(at: str, size: int, streams: int) -> None:
    """Have so many streams come back as they were sent."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=_ALPN, verify_mode=ssl.CERT_NONE
    )
    async with connect(
        at, PORT, configuration=configuration, create_protocol=Telling
    ) as connection:
        for _ in range(streams):
            reader, writer = await connection.create_stream()
            data = os.urandom(size)
            writer.write(data)
            writer.write_eof()
            if await reader.read() != data:
                sys.exit("other bytes came back")


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "server":
        asyncio.run(server(*words))
    else:
        asyncio.run(client(words[0], int(words[1]), int(words[2])))
