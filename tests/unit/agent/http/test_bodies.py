# SPDX-License-Identifier: Apache-2.0
"""What requests hold is checked beside the event loop, and is not too much."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from towpath.agent.http import errors, judge
from towpath.agent.http.bodies import (
    MAX_OTHERS,
    BackendsBody,
    JudgedRoute,
    QuestionBody,
    ServiceBody,
    SmallBodies,
    WishBody,
)
from towpath.agent.http.judge import MAX_BODY, SMALL, Judge
from towpath.api.codec import plain
from towpath.model.problems import MAX_PROBLEMS, MORE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from towpath.agent.http.wishes import Judged

WEB = {"name": "web", "vip": "203.0.113.1", "port": 80, "backends": ["192.0.2.1"]}


def made() -> FastAPI:
    """An application that answers with what it has understood."""
    app = FastAPI()
    app.add_middleware(SmallBodies)
    errors.install(app)
    router = APIRouter(route_class=JudgedRoute)

    @router.put("/service")
    async def service(service: ServiceBody) -> Response:
        return JSONResponse(plain(service))

    @router.put("/backends")
    async def backends(backends: BackendsBody) -> Response:
        return JSONResponse(plain(backends))

    @router.put("/wish")
    async def wish(wish: WishBody) -> Response:
        return JSONResponse(plain(wish))

    @router.put("/question")
    async def question(question: QuestionBody) -> Response:
        return JSONResponse(plain(question))

    @router.put("/other")
    async def other(request: Request) -> Response:
        return JSONResponse(len(await request.body()))

    app.include_router(router)
    return app


def asked(
    *requests: tuple[str, object],
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    headers: dict[str, str] | None = None,
) -> list[tuple[int, Any]]:
    """Status and answer of requests that are made at once, with what goes on beside them."""

    async def put(client: httpx.AsyncClient, path: str, body: object) -> tuple[int, Any]:
        content: Any = body if isinstance(body, bytes) or callable(body) else json.dumps(body)
        if callable(content):
            content = content()
        sent = {"Content-Type": "application/json"} if headers is None else headers
        answer = await client.put(path, content=content, headers=sent)
        return answer.status_code, answer.json()

    async def ask() -> list[tuple[int, Any]]:
        transport = httpx.ASGITransport(made())
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            other = asyncio.create_task(beside()) if beside else None
            found = await asyncio.gather(*(put(client, *each) for each in requests))
            if other is not None:
                other.cancel()
                await asyncio.gather(other, return_exceptions=True)
            return found

    return asyncio.run(ask())


def problems_in(answer: Any) -> list[tuple[str, str]]:
    """Field and message of each."""
    return [(each["field"], each["message"]) for each in answer["problems"]]


def children() -> set[int]:
    """Processes that this one has begun to check bodies."""
    found: set[int] = set()
    for each in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended
            found |= {
                number
                for number in map(int, (each / "children").read_text().split())
                if judge.__name__.encode() in Path(f"/proc/{number}/cmdline").read_bytes()
            }
    return found


CASES: list[tuple[str, object]] = [
    ("/service", WEB),
    ("/service", WEB | {"port": 0, "colour": "red"}),
    ("/service", []),
    ("/service", b"{"),
    ("/service", b'{"name": "\xff"}'),
    ("/service", b'{"port": ' + b"9" * 5000 + b"}"),
    ("/backends", ["192.0.2.1", {"address": "2001:db8::1", "weight": 3}]),
    ("/backends", [{"address": "192.0.2.1", "weight": -1}]),
    ("/backends", {}),
    ("/wish", {"services": [WEB], "prune": True}),
    ("/wish", {"services": [WEB, WEB], "prune": "yes", "x": 1}),
    ("/wish", {}),
    ("/wish", None),
    ("/question", {"services": [WEB], "owner": "file"}),
    ("/question", {"services": [WEB], "owner": "me"}),
]


def test_what_is_right_and_wrong_is_told() -> None:
    """With the model's rules and messages, the field being where it stands in the body."""
    found = asked(*CASES)
    assert [status for status, _ in found] == [
        *(200, 422, 422, 400, 400, 400),
        *(200, 422, 422),
        *(200, 422, 422, 422),
        *(200, 422),
    ]
    assert found[0][1]["backends"][0]["address"] == "192.0.2.1"
    assert [field for field, _ in problems_in(found[1][1])] == ["colour", "port"]
    assert problems_in(found[7][1])[0][0] == "backends[0].weight"
    assert [field for field, _ in problems_in(found[10][1])] == [
        "x",
        "prune",
        "services[1].name",
        "services[1].vip",
    ]
    assert found[13][1]["owner"] == "file"


def test_another_process_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is right or wrong; nothing of the process is left."""
    here = asked(*CASES)
    monkeypatch.setattr(judge, "SMALL", 0)
    assert asked(*CASES) == here
    assert children() == set()


def contradicting(size: int) -> bytes:
    """Services that are all for the same packets, in so many bytes or a few more."""
    one = {"vip": "203.0.113.1", "port": "1-65535", "backends": ["192.0.2.1", "192.0.2.2"]}
    each = len(json.dumps(one)) + 35
    many = [{"name": f"service-{number}"} | one for number in range(size // each)]
    return json.dumps({"services": many}).encode()


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body as it comes, as fast as it is taken."""
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]


@pytest.mark.parametrize("size", [SMALL - 1000, MAX_BODY - 1000], ids=["small", "large"])
def test_the_loop_goes_on_meanwhile(size: int) -> None:
    """However large a body is and however much is wrong; only so much is told."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def ask() -> Judged | None:
        other = asyncio.create_task(turn())
        found = await Judge().judged("wish", pieces(contradicting(size)))
        other.cancel()
        return found

    found = asyncio.run(ask())
    assert found
    assert len(found.problems) == MAX_PROBLEMS + 1
    assert found.problems[-1] == MORE
    assert turns > 5


def test_large_ones_are_checked_one_at_a_time() -> None:
    """In a process that is gone afterwards: their memory is that of one."""
    most = 0

    async def look() -> None:
        nonlocal most
        while True:
            await asyncio.sleep(0.001)
            most = max(most, len(children()))

    body = contradicting(2 * SMALL)
    found = asked(*[("/wish", body)] * 4, beside=look)
    assert {status for status, _ in found} == {422}
    assert most == 1
    assert children() == set()


def test_a_process_that_dies_is_told() -> None:
    """The next request has another."""

    async def kill() -> None:
        while True:
            await asyncio.sleep(0)
            for child in children():
                os.kill(child, signal.SIGKILL)

    body = contradicting(4 * SMALL)
    ((status, answer),) = asked(("/wish", body), beside=kill)
    assert status == 503
    assert "could not be checked: the process ended with -9" in problems_in(answer)[0][1]
    assert asked(("/wish", body))[0][0] == 422


async def endless() -> AsyncIterator[bytes]:
    """A body that never ends."""
    yield b'{"services": ['
    while True:
        yield b"{}," * 10_000
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("path", "body", "most"),
    [
        ("/wish", b"{" * (MAX_BODY + 1), MAX_BODY),
        ("/wish", endless, MAX_BODY),
        ("/other", b"{" * (MAX_OTHERS + 1), MAX_OTHERS),
        ("/other", endless, MAX_OTHERS),
    ],
    ids=["announced", "not announced", "others", "others, not announced"],
)
def test_more_than_that_is_refused(path: str, body: object, most: int) -> None:
    """Before it has all been read."""
    ((status, answer),) = asked((path, body))
    assert status == 413
    assert f"the body is too large; allowed: {most} bytes" in problems_in(answer)[0][1]
    assert children() == set()


def test_as_much_as_that_is_taken() -> None:
    """Of the others."""
    assert asked(("/other", b"x" * MAX_OTHERS)) == [(200, MAX_OTHERS)]


def test_a_body_that_says_it_is_not_json() -> None:
    """Is not read as if it were: a web page must not get by without asking."""
    ((status, answer),) = asked(("/service", WEB), headers={"Content-Type": "text/plain"})
    assert status == 422
    assert problems_in(answer) == [("", "is not JSON, by its Content-Type")]
