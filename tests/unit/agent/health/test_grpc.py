# SPDX-License-Identifier: Apache-2.0
"""Checks by gRPC's health protocol, of servers of grpcio and of others that know no better."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cryptography.x509 import load_pem_x509_certificate
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded
from tests.unit.agent.harness_servers import (
    OK,
    Direct,
    certificate,
    outcome,
    says,
    serving,
    target,
)
from tests.unit.agent.health.harness_grpc import SERVES, SERVES_NOT, WITHOUT, running

from towpath.agent.health.check import check
from towpath.agent.health.grpc import request, status_in
from towpath.agent.health.target import Seen
from towpath.model.health import CheckType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.agent.harness_servers import Behaviour

PASSED = ""
PLAIN, SECURE = CheckType.GRPC, CheckType.GRPCS


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    """Of grpcio."""
    with running() as ports:
        yield ports


@pytest.mark.parametrize(
    ("port", "service", "message"),
    [
        (SERVES, "", PASSED),
        (SERVES, SERVES, PASSED),
        (SERVES, SERVES_NOT, f"{SERVES_NOT} is NOT_SERVING"),
        (SERVES, "example.v1.Else", "knows no service example.v1.Else"),
        (WITHOUT, "", "doesn't speak grpc.health.v1"),
    ],
)
def test_what_servers_say(servers: dict[str, int], port: str, service: str, message: str) -> None:
    """Only SERVING is good."""
    asked = target(servers[port], PLAIN, grpc_service=service, host="shop.example")
    assert asyncio.run(outcome(asked)) == message


def test_through_tls(tmp_path: Path) -> None:
    """With ALPN, without which servers of gRPC refuse. The certificate's end is noted."""
    certificate(tmp_path)
    file = tmp_path / "certificate.pem"
    seen = Seen()
    with running(tmp_path / "key.pem", file) as ports:

        async def run() -> None:
            await check(target(ports[SERVES], SECURE, grpc_service=SERVES), Direct(), seen)

        asyncio.run(run())
        refused = asyncio.run(outcome(target(ports[SERVES], SECURE, verify=True)))
    assert refused == "no TLS: certificate: self-signed certificate"
    until = load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    assert seen.expires == until.timestamp()


def http2(*headers: tuple[str, str], body: bytes = b"", trailers: bool = True) -> Behaviour:
    """A server that answers any request so."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        while data := await reader.read(65536):
            events = connection.receive_data(data)
            if any(isinstance(event, StreamEnded) for event in events):
                connection.send_headers(1, headers, end_stream=not (body or trailers))
                if body:
                    connection.send_data(1, body, end_stream=not trailers)
                if trailers:
                    connection.send_headers(1, [("grpc-status", "0")], end_stream=True)
            writer.write(connection.data_to_send())
            await writer.drain()

    return behave


GOOD = ((":status", "200"), ("content-type", "application/grpc"))
SERVING = b"\0\0\0\0\2\x08\1"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (http2(*GOOD, body=SERVING), PASSED),
        (http2(*GOOD, body=b"\0\0\0\0\4\x08\1\x10\7"), PASSED),
        (http2(*GOOD, body=b"\0\0\0\0\0"), "the server is UNKNOWN"),
        (http2(*GOOD, body=b"\0\0\0\0\2\x08\x09"), "the server is status 9"),
        (http2(*GOOD), "no gRPC: no message"),
        (http2(*GOOD, body=b"\1\0\0\0\2\x08\1"), "no gRPC: 2 bytes where there should be 2"),
        (http2(*GOOD, body=SERVING + b"\0"), "no gRPC: 3 bytes where there should be 2"),
        (http2(*GOOD, body=b"\0\0\0\0\2\x12\0"), "no gRPC: a message that begins with 1200"),
        (http2(*GOOD, body=SERVING, trailers=False), "no gRPC: no grpc-status"),
        (http2((":status", "404"), trailers=False), "no gRPC: status 404"),
        (
            http2(*GOOD, ("grpc-status", "14"), ("grpc-message", "d%C3%BCn"), trailers=False),
            "grpc-status 14: d\\xfcn",
        ),
        (http2(*GOOD, body=bytes(10_000)), "no gRPC: more than 4 KiB of an answer"),
        (says(OK), "no HTTP/2: answers as HTTP/1 does"),
    ],
)
def test_answers(behaviour: Behaviour, message: str) -> None:
    """Whatever comes, there is a reason."""

    async def run() -> str:
        async with serving(behaviour) as port:
            return await outcome(target(port, PLAIN))

    found = asyncio.run(run())
    assert found.startswith(message)
    assert bool(found) == bool(message)


def test_nobody_is_there() -> None:
    """Neither before nor after the request."""

    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        assert writer

    async def run() -> str:
        async with serving(ends) as port:
            return await outcome(target(port, PLAIN))

    assert asyncio.run(run()) in {
        "closed the connection without an answer",
        "can't receive: connection reset by peer",
    }


def test_messages_are_protobufs() -> None:
    """As its own library writes and reads them."""
    for name in ("", "a", "x" * 127):
        framed = request(name)
        assert int.from_bytes(framed[:5], "big") == len(framed) - 5
        assert HealthCheckRequest.FromString(framed[5:]).service == name
    for number in range(4):
        body = HealthCheckResponse(status=number).SerializeToString()
        assert status_in(len(body).to_bytes(5, "big") + body) == number
