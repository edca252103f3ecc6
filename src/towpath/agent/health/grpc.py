# SPDX-License-Identifier: Apache-2.0
"""The health protocol of gRPC: ``grpc.health.v1.Health/Check``, over HTTP/2.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md and PROTOCOL-HTTP2.md beside it.
Its two messages have one field each, which are read and written here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING
from urllib.parse import unquote

from h2 import events
from h2.connection import H2Connection
from h2.exceptions import H2Error

from towpath import __version__
from towpath.agent.health.target import CheckFailedError
from towpath.model.service import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.agent.health.http import Stream
    from towpath.agent.health.target import Target

MAX_MESSAGE = 1 << 12
_PREFIX = struct.Struct("!BI")  # whether it is compressed, length
_STREAM = 1
# Field 1 of either message, by its wire type: a name with its length, or a number.
_NAME, _STATUS = 0x0A, 0x08
_OK, _NOT_FOUND, _UNIMPLEMENTED = "0", "5", "12"
_SERVING = 1
_HTTP_1 = b"HTTP/1"
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_SHOWN = 80


async def ask(stream: Stream, target: Target, scheme: str) -> None:
    """Ask for the health of the target's service. CheckFailedError unless it is SERVING.

    To be cancelled when the check's time is over.
    """
    connection, answer = H2Connection(), _Answer()
    try:
        connection.initiate_connection()
        connection.send_headers(_STREAM, _headers(target, scheme))
        connection.send_data(_STREAM, request(target.health.grpc_service), end_stream=True)
        await stream.send(connection.data_to_send())
        while not answer.ended:
            if not (data := await stream.receive()):
                raise CheckFailedError("closed the connection without an answer")
            if data.startswith(_HTTP_1):
                # To HTTP/2 that is the beginning of a frame of 4 MiB: it would be waited for.
                raise CheckFailedError("no HTTP/2: answers as HTTP/1 does")
            for event in connection.receive_data(data):
                answer.take(event, connection)
            if reply := connection.data_to_send():
                await stream.send(reply)
    except H2Error as error:
        raise CheckFailedError(f"no HTTP/2: {str(error)[:_SHOWN]}") from error
    answer.judge(target.health.grpc_service)


def _headers(target: Target, scheme: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", target.health.host or endpoint(target.vip, target.port)),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", f"towpath/{__version__} (health check)"),
    ]


def request(service: str) -> bytes:
    """Return a HealthCheckRequest with its prefix. A name has fewer than 128 bytes."""
    name = service.encode("ascii")
    message = bytes((_NAME, len(name))) + name if name else b""
    return _PREFIX.pack(0, len(message)) + message


def status_in(body: bytes) -> int:
    """Return the status in a HealthCheckResponse with its prefix; 0 if it has none. ValueError."""
    if len(body) < _PREFIX.size:
        raise ValueError("no message")
    compressed, size = _PREFIX.unpack_from(body)
    message = body[_PREFIX.size :]
    if compressed or size != len(message):
        raise ValueError(f"{len(message)} bytes where there should be {size}, or compressed")
    if not message:
        return 0
    # Numbers of statuses are below 128, so one byte each; what follows are fields of later.
    if message[0] != _STATUS or len(message) < 2 or message[1] & 0x80:  # noqa: PLR2004 - tag, value
        raise ValueError(f"a message that begins with {message[:2].hex()}")
    return message[1]


class _Answer:
    """What comes of the stream."""

    def __init__(self) -> None:
        self.ended = False
        self._fields: dict[str, str] = {}
        self._body = bytearray()

    def take(self, event: events.Event, connection: H2Connection) -> None:
        """Note what has come. CheckFailedError: nothing more will."""
        if isinstance(event, events.ResponseReceived | events.TrailersReceived):
            self._note(event.headers)
        elif isinstance(event, events.DataReceived):
            self._body += event.data
            if len(self._body) > MAX_MESSAGE:
                raise CheckFailedError(f"no gRPC: more than {MAX_MESSAGE >> 10} KiB of an answer")
            connection.acknowledge_received_data(event.flow_controlled_length, _STREAM)
        elif isinstance(event, events.StreamEnded):
            self.ended = True
        elif isinstance(event, events.StreamReset):
            raise CheckFailedError(f"no answer: the stream was reset, code {event.error_code}")
        elif isinstance(event, events.ConnectionTerminated) and not self._fields:
            raise CheckFailedError(f"no answer: the connection was ended, code {event.error_code}")

    def _note(self, fields: Iterable[tuple[bytes | str, bytes | str]]) -> None:
        for name, value in fields:
            self._fields[_text(name)] = _text(value)

    def judge(self, service: str) -> None:
        """CheckFailedError unless it says that the service serves."""
        fields, name = self._fields, service or "the server"
        if (code := fields.get(":status")) != "200":
            raise CheckFailedError(f"no gRPC: status {code}")
        status = fields.get("grpc-status")
        if status == _NOT_FOUND:
            raise CheckFailedError(f"knows no service {service}")
        if status == _UNIMPLEMENTED:
            raise CheckFailedError("doesn't speak grpc.health.v1")
        if status != _OK:
            said = unquote(fields.get("grpc-message", ""))[:_SHOWN]
            what = f"grpc-status {status}" if status else "no gRPC: no grpc-status"
            raise CheckFailedError(f"{what}: {ascii(said)[1:-1]}" if said else what)
        try:
            found = status_in(bytes(self._body))
        except ValueError as error:
            raise CheckFailedError(f"no gRPC: {error}") from error
        if found != _SERVING:
            word = _STATUSES[found] if found < len(_STATUSES) else f"status {found}"
            raise CheckFailedError(f"{name} is {word}")


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
