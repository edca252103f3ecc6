# SPDX-License-Identifier: Apache-2.0
"""HTTP with an agent, without I/O: bytes to send, bytes that came, what they say.

Requests and answers take turns on one connection. Whoever has the socket sends what
`Wire.send` returns, and feeds what comes to `Wire.receive` until there is an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h11

if TYPE_CHECKING:
    from towpath.api.calls import Call

BROKEN = h11.RemoteProtocolError
"""What came is no answer."""


class Wire:
    """One connection, from our end. Methods that read raise BROKEN."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._ended = False

    @property
    def idle(self) -> bool:
        """Whether the last answer is complete, and another request may follow."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return self._http.our_state is h11.IDLE

    def send(self, call: Call[Any]) -> bytes:
        """Begin a request; returns its bytes."""
        self._head, self._ended = None, False
        headers = [("Host", "localhost")]
        if call.body is not None:
            headers += [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(call.body))),
            ]
        request = h11.Request(method=call.method, target=call.target, headers=headers)
        events: list[h11.Event] = [request, h11.EndOfMessage()]
        if call.body is not None:
            events.insert(1, h11.Data(call.body))
        return b"".join(self._http.send(event) or b"" for event in events)

    def receive(self, data: bytes) -> None:
        """Take what came; nothing stands for the end of the connection."""
        self._http.receive_data(data)

    def head(self) -> tuple[int, dict[str, str]] | None:
        """Return status and headers (lower-case names) of the answer; None: more has to come."""
        while self._head is None:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.ConnectionClosed):
                raise BROKEN("the connection was closed before the answer")
            if isinstance(event, h11.Response):
                self._head = event
        headers = {name.decode(): value.decode() for name, value in self._head.headers}
        return self._head.status_code, headers

    def part(self) -> bytes | None:
        """Return more of the answer's body, nothing at its end; None: more has to come."""
        while not self._ended:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Data):
                return bytes(event.data)
            self._ended = True
        return b""
