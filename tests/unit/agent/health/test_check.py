# SPDX-License-Identifier: Apache-2.0
"""Single checks against real servers, with every fault that a server can have."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.harness_servers import (
    HOST,
    OK,
    Broken,
    certificate,
    endless,
    outcome,
    rude,
    says,
    serving,
    silent,
    target,
)

from towpath.agent.health import stream
from towpath.datapath.errors import DatapathError
from towpath.lab.waiting import wait_until
from towpath.model import CheckType

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from tests.unit.agent.harness_servers import Behaviour

IN_VAIN = "no answer within 0.2 s"
MANY = 10_000


def waits(message: str) -> float:
    """The timeout of a check: short for one that is to come to nothing."""
    return 0.2 if message == IN_VAIN else 10.0


def tried(behaviour: Behaviour, kind: CheckType = CheckType.HTTP, **fields: object) -> str:
    """How a check of a server that behaves so ends."""

    async def run() -> str:
        async with serving(behaviour) as port:
            return await outcome(target(port, kind, **fields))

    return asyncio.run(run())


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind((str(HOST), 0))
        return int(bound.getsockname()[1])


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a server whose kernel drops what would connect: its queue is full."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind((str(HOST), 0))
        server.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)  # noqa: FBT003 -- as it is called
            waiting.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])


# Connecting


@pytest.mark.parametrize("behaviour", [silent, says(OK), rude])
def test_tcp_passes_whatever_a_server_says(behaviour: Behaviour) -> None:
    """It has taken the connection."""
    assert tried(behaviour, CheckType.TCP) == ""


@pytest.mark.parametrize("kind", [CheckType.TCP, CheckType.HTTP, CheckType.HTTPS])
def test_nobody_listens(kind: CheckType, free_port: int) -> None:
    """Refused at once."""
    assert asyncio.run(outcome(target(free_port, kind))) == "can't connect: connection refused"


@pytest.mark.parametrize("kind", [CheckType.TCP, CheckType.HTTP, CheckType.HTTPS])
def test_nobody_answers(kind: CheckType, deaf: int) -> None:
    """Given up after the timeout, not after the kernel's own minutes."""
    assert asyncio.run(outcome(target(deaf, kind, timeout=0.2))) == IN_VAIN


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (DatapathError("no IPv4 address of this node"), "no IPv4 address of this node"),
    ],
)
def test_what_this_node_cannot_do_is_no_failure(error: Exception, message: str) -> None:
    """It says nothing about the backend."""
    assert asyncio.run(outcome(target(80), Broken(error))).startswith("unable: ")
    assert message in asyncio.run(outcome(target(80), Broken(error)))


# HTTP


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.0 200 OK\r\n\r\nold",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1 \x01\xff\r\n: none\r\nnothing\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 " + b"x" * 65_521 + b"\n\n" + b"x" * 100_000,
        b"HTTP/1.1 200\n\n",
        b"HTTP/1.1 200 \xc3\xa4\r\n\r\n",
        b"HTTP/1.1 100 Continue\n\nHTTP/1.1 102 Processing\n\nHTTP/1.1 200 OK\n\n",
    ],
)
def test_good_answers(answer: bytes) -> None:
    """The status counts, not what follows."""
    assert tried(says(answer)) == ""


def test_an_answer_in_small_pieces() -> None:
    """As long as the status is there in time."""
    pieces = [OK[i : i + 1] for i in range(len(OK))]
    assert tried(says(*pieces)) == ""


def test_an_answer_without_end() -> None:
    """Nobody waits for it."""
    assert tried(endless, timeout=60.0) == ""


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (silent, IN_VAIN),
        (says(OK, pause=0.5), IN_VAIN),
        (says(*[b"x"] * 50, pause=0.02), IN_VAIN),
        (says(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 50, pause=0.02), IN_VAIN),
        (rude, "can't receive: connection reset by peer"),
        (says(), "closed the connection without an answer"),
        (says(b"HTTP/1.1 100 Continue\r\n\r\n"), "closed the connection without an answer"),
        (says(b"HTTP/1.1 200"), "no HTTP: closed the connection within the header"),
        (says(b"HTTP/1.1 200 OK\r\nX: y\r\n"), "no HTTP: closed the connection within the header"),
        (says(b"\x1b[2J\n"), "no HTTP: the answer begins with '\\x1b[2J'"),
        (says(b"HTTP/1.1 2000 OK\r\n\r\n"), "no HTTP: the answer begins with 'HTTP/1.1 2000 OK"),
        (says(b"HTTP/1.1 101 Switching\r\n\r\n"), "status 101; wanted: 200-399"),
        (
            says(b"HTTP/1.1 200 " + b"x" * 65_522 + b"\n\n" + b"x" * 100_000),
            "no HTTP: its header has more than 64 KiB",
        ),
        (says(b"\x00\xff\xfe\r\n\r\n"), "no HTTP: "),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "no HTTP: "),
        (says(bytes(1 << 20)), "no HTTP: "),
        (says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20)), "no HTTP: "),
        (says(b"HTTP/1.1 999 What\r\n\r\n"), "status 999; wanted: 200-399"),
        (says(b"HTTP/1.1 503 Sorry\r\n\r\n"), "status 503; wanted: 200-399"),
    ],
)
def test_bad_answers(behaviour: Behaviour, message: str) -> None:
    """Slow, none, garbage, the wrong status: each is told as what it is."""
    assert tried(behaviour, timeout=waits(message)).startswith(message)


def test_what_is_asked_for() -> None:
    """Path and host, and that the connection is to be closed."""
    seen: list[bytes] = []

    async def notes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await writer.drain()
        await reader.read()

    assert tried(notes, path="/ready?deep=1", host="web.example") == ""
    assert tried(notes) == ""
    first, second = (request.decode().split("\r\n") for request in seen)
    assert first[0] == "GET /ready?deep=1 HTTP/1.1"
    assert {"Host: web.example", "Connection: close"} <= set(first)
    assert any(line.startswith(f"Host: {HOST}:") for line in second)


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's certificate that it has signed itself."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusting(tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This node trusts that certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
    stream.context.cache_clear()
    yield
    stream.context.cache_clear()


def tried_tls(server: ssl.SSLContext, behaviour: Behaviour, **fields: object) -> str:
    """How a check of a server that speaks TLS ends."""

    async def run() -> str:
        async with serving(behaviour, server) as port:
            return await outcome(target(port, CheckType.HTTPS, timeout=30.0, **fields))

    return asyncio.run(run())


def test_any_certificate_will_do(tls: tuple[ssl.SSLContext, Path]) -> None:
    """Unless it is to be verified."""
    assert tried_tls(tls[0], says(OK)) == ""
    assert tried_tls(tls[0], says(b"HTTP/1.1 500 No\r\n\r\n")) == "status 500; wanted: 200-399"
    stream.context.cache_clear()
    message = tried_tls(tls[0], says(OK), verify=True)
    assert message == "no TLS: certificate: self-signed certificate"


@pytest.mark.usefixtures("trusting")
def test_a_verified_certificate(tls: tuple[ssl.SSLContext, Path]) -> None:
    """Of an authority of this node's, for the host that is asked for."""
    assert tried_tls(tls[0], says(OK), verify=True, host="web.example") == ""
    message = tried_tls(tls[0], says(OK), verify=True, host="mail.example")
    assert message.startswith("no TLS: certificate: Hostname mismatch")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (silent, IN_VAIN),
        (rude, "can't receive: connection reset by peer"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), IN_VAIN),
    ],
)
def test_a_server_without_tls(behaviour: Behaviour, message: str) -> None:
    """It waits for a request's end, or says what isn't TLS, or is rude."""
    assert tried(behaviour, CheckType.HTTPS, timeout=waits(message)) == message


def test_garbage_in_place_of_tls() -> None:
    """Told as such."""

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write_eof()
        await reader.read()

    assert tried(answers, CheckType.HTTPS) == "no TLS: wrong version number"
    assert tried(ends, CheckType.HTTPS).startswith("no TLS: ")


# Commands


def ran(*command: str, timeout: float = 2.0) -> str:
    """How a check by a command ends."""
    fields = {"command": command, "timeout": timeout}
    return asyncio.run(outcome(target(80, CheckType.COMMAND, **fields)))


def test_exit_status() -> None:
    """0 passes; of what is said the last line is told."""
    assert ran("/bin/true") == ""
    assert ran("/bin/false") == "exit status 1"
    assert ran("/bin/sh", "-c", "echo a; echo no luck >&2; exit 7") == "exit status 7: no luck"
    assert ran("/bin/sh", "-c", "kill -9 $$") == "killed by SIGKILL"
    assert ran("/bin/sh", "-c", "head -c 3000000 /dev/zero; exit 2").startswith("exit status 2")


def test_a_command_that_is_not_there() -> None:
    """Is this node's fault."""
    assert ran("/no/such/program") == "unable: /no/such/program: No such file or directory"


def test_what_a_command_is_told() -> None:
    """Everything about the backend."""
    script = "echo $TOWPATH_SERVICE $TOWPATH_VIP $TOWPATH_PORT $TOWPATH_PROTOCOL $TOWPATH_BACKEND"
    said = ran("/bin/sh", "-c", f"{script}; exit 1")
    assert said == "exit status 1: web 127.0.0.1 80 tcp 127.0.0.1"


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    """Also those in the background, and one that doesn't want to end."""
    marks = tmp_path / "pids"
    script = f"trap '' TERM; sleep 60 & echo $! >> {marks}; echo $$ >> {marks}; wait"
    assert ran("/bin/sh", "-c", script, timeout=3.0) == "no answer within 3 s"
    pids = [int(line) for line in marks.read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(_runs, pids)), seconds=60, what="them to end")


def _runs(pid: int) -> bool:
    """Whether a process does anything any more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# What is left


def test_ten_thousand_checks_leave_nothing(
    tls: tuple[ssl.SSLContext, Path], free_port: int, deaf: int
) -> None:
    """Of every kind, with every end: no file descriptor and no task."""
    ends: dict[str, int] = {}

    async def one(port: int, kind: CheckType, limit: asyncio.Semaphore) -> None:
        async with limit:
            wait = 0.05 if port == deaf else 60.0
            end = await outcome(target(port, kind, timeout=wait))
            ends[end] = ends.get(end, 0) + 1

    async def run() -> None:
        limit = asyncio.Semaphore(64)
        async with (
            serving(says(OK)) as good,
            serving(rude) as resets,
            serving(says(b"\0\0")) as garbage,
            serving(says(OK), tls[0]) as secure,
        ):
            targets = [
                *[(good, CheckType.HTTP)] * 5,
                *[(good, CheckType.TCP)] * 5,
                *[(resets, CheckType.HTTP)] * 4,
                *[(garbage, CheckType.HTTP)] * 3,
                (secure, CheckType.HTTPS),
                (free_port, CheckType.TCP),
                (deaf, CheckType.TCP),
            ]
            await one(*targets[0], limit)
            before = await quiet()
            await asyncio.gather(*(one(*targets[n % len(targets)], limit) for n in range(MANY)))
            assert await quiet() <= before
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert sum(ends.values()) == MANY + 1
    assert len(ends) == 5, ends
    assert ends[""] == MANY * 11 // 20 + 1


async def quiet() -> int:
    """How many file descriptors there are when the servers' ends have gone too."""
    deadline = time.monotonic() + 120
    while len(asyncio.all_tasks()) > 1 and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return len(list(Path("/proc/self/fd").iterdir()))  # noqa: ASYNC240 -- no disk behind it
