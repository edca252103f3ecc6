# SPDX-License-Identifier: Apache-2.0
"""Ends of QUIC connections that move, by aioquic.

``server VIP CERTIFICATE KEY SERVER-ID`` serves at UDP port 4433, with connection ids that have its
id (``-``: with any). ``client VIP MOVES ADDRESS...`` goes from one address and port to another and
says how many times nobody answered there.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import sys
from itertools import cycle
from types import SimpleNamespace

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from towpath import quic

PORT = 4433
CONFIG = quic.Quic(length=2, rotation=1, length_self_description=True)
SIZE = 13
"""Bytes of a connection id, as of nothing else that aioquic draws."""
PATIENCE = 3.0
"""Seconds for an answer that takes a millisecond; a lost packet is sent again in less."""
_ALPN = ["towpath"]


def say(what: object) -> None:
    """Tell the test."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def name_server(server_id: int) -> None:
    """Have aioquic take ids that name this server: it draws them, as all that is random."""

    def draw(size: int) -> bytes:
        return quic.make(server_id, CONFIG, size=SIZE) if size == SIZE else os.urandom(size)

    vars(aioquic_connection)["os"] = SimpleNamespace(urandom=draw)


async def server(at: str, certificate: str, key: str, server_id: str) -> None:
    """Serve until it is ended."""
    if server_id != "-":
        name_server(int(server_id))
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=_ALPN, connection_id_length=SIZE
    )
    configuration.load_cert_chain(certificate, key)
    await serve(at, PORT, configuration=configuration)
    say("ready")
    await asyncio.Event().wait()


class Client:
    """A connection that moves."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._protocol: QuicConnectionProtocol | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def connect(self, address: str) -> None:
        """Begin anew, from an address."""
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=_ALPN, verify_mode=ssl.CERT_NONE, idle_timeout=600.0
        )
        self._protocol = QuicConnectionProtocol(QuicConnection(configuration=configuration))
        await self._bind(address)
        # As asyncio tells from where datagrams come.
        end = (self._at, PORT, 0, 0) if ":" in self._at else (self._at, PORT)
        self._protocol.connect(end)
        await self._protocol.wait_connected()

    async def move(self, address: str, *, openly: bool) -> bool:
        """Go on from another address and port; whether the server answers there.

        ``openly``: with another connection id (RFC 9000, 9.5). Else as a NAT has it, which says
        nothing to anybody.
        """
        assert self._protocol is not None
        await self._bind(address)
        if openly:
            self._protocol.change_connection_id()
        try:
            await asyncio.wait_for(self._protocol.ping(), PATIENCE)
        except (TimeoutError, ConnectionError):
            return False
        return True

    async def _bind(self, address: str) -> None:
        loop, protocol, before = asyncio.get_running_loop(), self._protocol, self._transport
        assert protocol is not None
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: protocol, local_addr=(address, 0)
        )
        if before is not None:
            before.close()


async def client(at: str, moves: int, addresses: list[str]) -> None:
    """Move so many times. A connection that is broken is made anew."""
    moving, where = Client(at), cycle(addresses)
    await moving.connect(next(where))
    broken = 0
    chance = random.Random(1)  # noqa: S311 -- no secret
    for _ in range(moves):
        address = next(where)
        if not await moving.move(address, openly=chance.random() < 0.5):
            broken += 1
            moving = Client(at)
            await moving.connect(address)
    say(broken)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "server":
        asyncio.run(server(*words))
    else:
        asyncio.run(client(words[0], int(words[1]), words[2:]))
