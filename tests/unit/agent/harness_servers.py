# SPDX-License-Identifier: Apache-2.0
"""Servers on the loopback device that behave in every way a server can, and checks of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeAlias

from towpath.agent.health.check import check
from towpath.agent.health.target import CheckFailedError, CheckNotMadeError, Target
from towpath.datapath.health.asked import Asked
from towpath.model import CheckType, Health, Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from towpath.model import Address

    Behaviour: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HOST = ip_address("127.0.0.1")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RESET = struct.pack("ii", 1, 0)


class Direct:
    """A way to a server that is no tunnel: straight over the loopback device."""

    def open(self, vips: Iterable[Address], others: Iterable[Address] = ()) -> None:
        """Nothing is needed."""

    def close(self) -> None:
        """Nothing is left."""

    def connection(self, asked: Asked) -> socket.socket:
        """A plain socket."""
        assert asked == Asked(asked.backend, asked.backend, datagrams=asked.datagrams)
        made = socket.socket(type=socket.SOCK_DGRAM if asked.datagrams else socket.SOCK_STREAM)
        made.setblocking(False)  # noqa: FBT003 -- as it is called
        if not asked.datagrams:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return made


@dataclass(frozen=True)
class Broken(Direct):
    """A way that this node can't go."""

    error: Exception

    def connection(self, asked: Asked) -> socket.socket:
        """Fail."""
        raise self.error if asked == Asked(HOST, HOST) else AssertionError


def target(port: int, kind: CheckType = CheckType.HTTP, **fields: object) -> Target:
    """What is at a port of the loopback device."""
    health = replace(Health(kind, timeout=10.0), **fields)  # type: ignore[arg-type]
    return Target("web", ServiceKey(HOST, port, Protocol.TCP), HOST, HOST, port, health)


async def outcome(wanted: Target, path: Direct | None = None) -> str:
    """How a check ends: "" if it passes, else why it doesn't."""
    try:
        await check(wanted, path or Direct())
    except CheckFailedError as error:
        return str(error)
    except CheckNotMadeError as error:
        return f"unable: {error}"
    return ""


@asynccontextmanager
async def serving(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server in the block; gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.CancelledError):
                await behaviour(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, str(HOST), 0, ssl=tls, backlog=1024)
    async with server:
        yield server.sockets[0].getsockname()[1]


def says(*parts: bytes, pause: float = 0.0) -> Behaviour:
    """A server that reads a request and says this, then ends the connection."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            await asyncio.sleep(pause)
            writer.write(part)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            await reader.read()

    return behave


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads whatever comes."""
    assert writer
    await reader.read()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Resets the connection at the first byte."""
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers well, and never stops."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(4096))
        await writer.drain()


def certificate(directory: Path, name: str = "web.example") -> tuple[ssl.SSLContext, Path]:
    """What a server needs for TLS, and the file of the authority that vouches for it: itself."""
    key, file = directory / "key.pem", directory / "certificate.pem"
    names = f"-subj /CN={name} -addext subjectAltName=DNS:{name}"
    files = f"-keyout {key} -out {file}"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command = f"openssl req -x509 {kind} {names} {files}".split()
    subprocess.run(command, check=True, capture_output=True)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file, key)
    return made, file
