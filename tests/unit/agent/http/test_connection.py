# SPDX-License-Identifier: Apache-2.0
"""Connections that do nothing, or too many of them, keep nobody waiting."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from towpath.agent.http import connection, sending
from towpath.agent.http.accept import accept
from towpath.agent.http.connection import Connection, Connections
from towpath.agent.http.sending import send_all
from towpath.agent.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 1 << 26
SOON = 0.2  # seconds
PATIENCE = 60.0


@dataclass
class Server:
    """An application behind connections of ours, and what has become of its requests."""

    path: str
    connections: Connections
    go: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    ended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, wait for ``go``, and answer.

        /large with more than any buffer takes, /whole in the agent's way.
        """
        try:
            self.under_way.release()
            while (await receive()).get("more_body"):
                pass
            await self.go.wait()
            if scope["path"] == "/whole":
                pieces = (b"x" * (1 << 16) for _ in range(0, LARGE, 1 << 16))
                whole = Response(headers={"content-length": str(LARGE)})
                return await send_all(scope, send, whole, pieces)
            size = LARGE if scope["path"] == "/large" else 2
            headers = [(b"content-length", b"%d" % size)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for _ in range(0, size, 1 << 16):
                piece = b"x" * min(size, 1 << 16)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.ended.release()

    async def client(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and send something."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def serving(directory: Path, limit: int = 8) -> AsyncIterator[Server]:
    """A server in the block."""
    server = Server(str(directory / "sock"), Connections(limit))
    loop, supervisor = asyncio.get_running_loop(), Supervisor()
    config = uvicorn.Config(
        server.app, http=Connection, interface="asgi3", lifespan="off", log_config=None
    )
    config.load()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.path)
        listener.listen(64)
        listener.settimeout(0)
        state = ServerState()
        make = partial(Connection, config, state, server.connections, loop)
        supervisor.start("connections", partial(accept, listener, make), pause=SOON)
        try:
            yield server
        finally:
            await supervisor.stop()
            for each in list(state.connections):
                each.transport.abort()
            for task in list(state.tasks):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come about."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if condition():
                return
            await asyncio.sleep(SOON / 10)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer with a length."""
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


async def end(reader: asyncio.StreamReader) -> bytes:
    """Whatever comes until the connection ends."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionResetError):
            return await reader.read()
    return b""


@pytest.mark.parametrize(
    ("part", "data"),
    [
        ("HEAD", b""),
        ("HEAD", b"GET / HTTP/1.1\r\nHost: x\r\n"),
        ("BODY", b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"),
        ("BODY", b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
    ids=["nothing", "half a head", "half a body", "no chunk"],
)
def test_what_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, data: bytes
) -> None:
    """The connection ends; nothing of it is left."""
    monkeypatch.setattr(connection, f"{part}_SECONDS", SOON)

    async def ask() -> None:
        async with serving(tmp_path) as server:
            reader, writer = await server.client(data)
            assert await end(reader) == b""
            assert len(server.connections) == 0
            writer.close()

    asyncio.run(ask())


def test_an_answer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to be made: the limits are the client's, not the agent's."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", SOON)
    monkeypatch.setattr(connection, "BODY_SECONDS", SOON)

    async def ask() -> None:
        async with serving(tmp_path) as server:
            reader, writer = await server.client(REQUEST)
            await server.under_way.acquire()
            _, other = await server.client()
            await until(lambda: len(server.connections) == 1)  # the other one is given up
            server.go.set()
            assert await answer(reader) == (200, b"xx")
            writer.write(REQUEST)
            assert await answer(reader) == (200, b"xx")
            writer.close()
            other.close()

    asyncio.run(ask())


def test_a_reader_that_takes_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application goes on, and ends."""
    monkeypatch.setattr(connection, "STALL_SECONDS", SOON)

    async def ask() -> None:
        async with serving(tmp_path) as server:
            server.go.set()
            _, writer = await server.client(REQUEST.replace(b"/", b"/large", 1))
            async with asyncio.timeout(PATIENCE):
                await server.ended.acquire()
            assert len(server.connections) == 0
            writer.close()

    asyncio.run(ask())


def test_a_reader_that_takes_too_long_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it takes a little now and then; that is no error of the application's."""
    monkeypatch.setattr(sending, "SECONDS", SOON)
    monkeypatch.setattr(connection, "STALL_SECONDS", PATIENCE)

    async def ask() -> None:
        async with serving(tmp_path) as server:
            server.go.set()
            reader, writer = await server.client(REQUEST.replace(b"/", b"/whole", 1))
            while server.ended.locked():
                await reader.read(1)
            await until(lambda: not server.connections)
            writer.close()

    asyncio.run(ask())
    assert [each.message for each in caplog.records if each.levelname != "DEBUG"] == []


def test_a_slow_reader_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it takes something."""
    monkeypatch.setattr(connection, "STALL_SECONDS", PATIENCE)

    async def ask() -> None:
        async with serving(tmp_path) as server:
            server.go.set()
            reader, writer = await server.client(REQUEST.replace(b"/", b"/large", 1))
            status, body = await answer(reader)
            assert (status, len(body)) == (200, LARGE)
            writer.close()

    asyncio.run(ask())


def test_those_without_a_request_make_room(tmp_path: Path) -> None:
    """The oldest of them first; those with a request stay."""

    async def ask() -> None:
        async with serving(tmp_path, limit=3) as server:
            busy = await server.client(REQUEST)
            await server.under_way.acquire()
            first = await server.client(b"GET / HTTP/1.1\r\n")
            second = await server.client()
            await until(lambda: len(server.connections) == 3)
            fourth = await server.client(REQUEST)
            assert await end(first[0]) == b""
            server.go.set()
            assert await answer(busy[0]) == (200, b"xx")
            assert await answer(fourth[0]) == (200, b"xx")
            assert not second[0].at_eof()
            for _, writer in (busy, first, second, fourth):
                writer.close()

    asyncio.run(ask())


def test_more_requests_than_that_are_refused(tmp_path: Path) -> None:
    """At once, and so that a client of ours understands; the others are answered."""

    async def ask() -> None:
        async with serving(tmp_path, limit=2) as server:
            busy = [await server.client(REQUEST) for _ in range(2)]
            for _ in busy:
                await server.under_way.acquire()
            reader, writer = await server.client(REQUEST)
            status, body = await answer(reader)
            assert status == 503
            assert "too many connections" in json.loads(body)["problems"][0]["message"]
            assert await end(reader) == b""
            server.go.set()
            for each, _ in busy:
                assert await answer(each) == (200, b"xx")
            for _, other in busy:
                other.close()
            writer.close()

    asyncio.run(ask())


@contextmanager
def no_more_files() -> Iterator[None]:
    """Nothing can be opened in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_open_files_connections_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; they are answered when there are files again."""

    async def ask() -> None:
        async with serving(tmp_path) as server:
            server.go.set()
            warm, writer = await server.client(REQUEST)
            await answer(warm)
            clients = [socket.socket(socket.AF_UNIX) for _ in range(20)]
            with no_more_files():
                for each in clients:
                    each.connect(server.path)
                    each.sendall(REQUEST)
                await until(lambda: bool(caplog.records))
                await asyncio.sleep(3 * SOON)  # some more tries
            for each in clients[:8]:
                each.settimeout(0)
                got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(each, 12), 60)
                assert got == b"HTTP/1.1 200"
            for each in clients:
                each.close()
            writer.close()

    asyncio.run(ask())
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == [
        "connections: tried again every 0.2 s"
    ]
