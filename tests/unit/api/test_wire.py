# SPDX-License-Identifier: Apache-2.0
"""Requests and answers without a socket: what is sent, and what is read of what comes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import h11
import pytest

from towpath.api import aio, calls, client
from towpath.api.documents import Flow, Flows
from towpath.api.errors import ApiError, refusal
from towpath.api.wire import BROKEN, Wire
from towpath.errors import ConfigError, ConflictError, NotFoundError
from towpath.model import Backend, CheckType, Health, OnDown, Protocol, Service, parse_service

WEB = Service("web", ip_address("203.0.113.10"), 80)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nanswers"


def seen(data: bytes) -> tuple[str, str, bytes]:
    """Method, target and body of a request, as a server reads it."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += bytes(event.data)
    return request.method.decode(), request.target.decode(), body


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        (calls.services(), "GET /v1/services", None),
        (calls.service("a/b ?"), "GET /v1/services/a%2Fb%20%3F", None),
        (calls.put_service(WEB, force=True), "PUT /v1/services/web?force=true", "203.0.113.10"),
        (calls.apply([], prune=True, force=False), "POST /v1/apply", '"prune": true'),
        (calls.flows({"client": "::/0"}, start=0, limit=7), "GET /v1/flows?client=", None),
        (calls.counters(per_cpu=False), "GET /v1/counters", None),
    ],
)
def test_a_call_is_one_request(call: calls.Call[object], line: str, body: str | None) -> None:
    """Its path quoted, what isn't given left out."""
    method, target, content = seen(Wire().send(call))
    assert f"{method} {target}".startswith(line)
    assert "None" not in target
    assert (body or "") in content.decode()
    assert bool(content) == (body is not None)


def test_what_a_service_leaves_to_its_default_is_not_sent() -> None:
    """To an agent that is older and knows less it would be an unknown key."""
    health = Health(CheckType.TCP)
    service = replace(WEB, health=health, backends=(Backend(ip_address("192.0.2.11")),))
    for call in (
        calls.put_service(service, force=False),
        calls.apply([service], prune=False, force=False),
        calls.plan([service], prune=False, owner="api"),
    ):
        body = json.loads(call.body or b"")
        (sent,) = body.get("services", [body])
        assert "null" not in json.dumps(sent)
        assert not {"flow_timeout", "affinity"} & sent.keys()
        assert "on_down" not in sent["health"]
        assert parse_service(sent) == service
    kept = replace(service, protocol=Protocol.UDP, flow_timeout=30)
    made = replace(kept, health=replace(health, on_down=OnDown.KEEP))
    assert parse_service(json.loads(calls.put_service(made, force=False).body or b"")) == made


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_answers_come_in_pieces(size: int) -> None:
    """Of any size; then the next request may be sent."""
    wire = Wire()
    for _ in range(2):
        assert wire.idle
        wire.send(calls.metrics())
        found, pieces = b"", [OK[at : at + size] for at in range(0, len(OK), size)]
        while wire.head() is None:
            wire.receive(pieces.pop(0))
        assert wire.head() == (200, {"content-length": "7"})
        while (part := wire.part()) != b"":
            if part is None:
                wire.receive(pieces.pop(0))
            else:
                found += part
        assert found == b"answers"


@pytest.mark.parametrize("data", [b"", OK[:-1], b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 100])
def test_what_is_no_answer(data: bytes) -> None:
    """Or none that is complete."""
    wire = Wire()
    wire.send(calls.metrics())
    with pytest.raises(BROKEN):  # noqa: PT012 - wherever it is seen
        if data:
            wire.receive(data)
        if wire.head() is None or wire.part():
            wire.receive(b"")
            wire.head()
            while wire.part():
                pass


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (404, (NotFoundError, KeyError)),
        (409, (ConflictError,)),
        (422, (ConfigError, ValueError)),
        (500, ()),
    ],
)
def test_refusals_are_of_the_class_that_a_load_balancer_raises(
    status: int, kinds: tuple[type[Exception], ...]
) -> None:
    """And tell their problems."""
    problem = {"message": "is wrong", "field": "vip", "file": None, "line": None}
    error = refusal(status, json.dumps({"problems": [problem]}).encode())
    assert isinstance(error, ApiError)
    assert all(isinstance(error, kind) for kind in kinds)
    assert (error.status, str(error)) == (status, "vip: is wrong")
    assert str(refusal(status, b"<html>")) == "<html>"


def test_pages_go_on_until_there_is_no_more_or_enough() -> None:
    """The last one is no longer than is left."""
    flow = Flow("web", WEB.vip, 1, WEB.vip, 0.0)  # type: ignore[arg-type]
    pages = calls.Pages(25_000)
    for start, size in ((0, 10_000), (17, 10_000), (18, 5_000)):
        assert pages.next == (start, size)
        pages.got(Flows((flow,) * size, start + 17 if start == 0 else start + 1))
    assert pages.next is None
    pages = calls.Pages(None)
    pages.got(Flows((flow,), None))
    assert pages.next is None


def test_both_clients_have_the_same_methods() -> None:
    """Of the same names."""

    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(aio.AsyncClient) == public(client.Client)
