# SPDX-License-Identifier: Apache-2.0
"""Connections of a listener: so many, and each for so long without getting on.

uvicorn waits for ever for a request's head and body and for a reader that takes nothing, and
takes any number of connections.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

from towpath.agent.http.sending import CONNECTION

if TYPE_CHECKING:
    import asyncio

    import uvicorn
    from uvicorn.server import ServerState

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""From the first byte of a request, or a connection's begin, to the end of its head."""
BODY_SECONDS = 30.0
"""From a request's head to the end of its body."""
STALL_SECONDS = 30.0
"""A reader that takes nothing for so long is taken for dead."""

_BUSY = json.dumps({"problems": [{"message": "too many connections; try again"}]}).encode()
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json"
)


@dataclass
class Connections:
    """Those of one listener that are open, ``limit`` at most; the oldest come first."""

    limit: int
    _open: dict[Connection, None] = field(default_factory=dict)

    def add(self, connection: Connection) -> bool:
        """Take one in, if need be for one that has no request under way; whether it may stay."""
        if len(self._open) >= self.limit:
            idle = next((each for each in self._open if each.is_idle), None)
            if idle is None:
                return False
            idle.abort()
        self._open[connection] = None
        return True

    def remove(self, connection: Connection) -> None:
        """Forget one."""
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)


class Connection(H11Protocol):
    """One connection, which ends when its client does nothing."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        mine = {CONNECTION: self}
        super().__init__(config=config, server_state=state, app_state=mine, _loop=loop)
        self._those = connections
        self._refused = False
        self._waits_for = ""
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is under way: none has come, or only a part of its head."""
        return self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """End it at once, whatever has not been sent."""
        self._those.remove(self)
        self.transport.abort()

    # ---- What the event loop calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, or say that there are too many."""
        super().connection_made(transport)
        if self._those.add(self):
            self._watch()
            return
        self._refused = True
        head = b"%sContent-Length: %d\r\n\r\n" % (_REFUSAL, len(_BUSY))
        transport.write(head + _BUSY)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._those.remove(self)
        self._wait_for("")
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if not self._refused:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """An answer has been given; uvicorn waits for the next request's first byte."""
        self._wait_for("")
        super().on_response_complete()
        if not self.is_idle:  # the next request was here already
            self._watch()

    def pause_writing(self) -> None:
        """The client takes less than there is."""
        super().pause_writing()
        self._unstall()
        self._stalled = self.loop.call_later(STALL_SECONDS, self.abort)

    def resume_writing(self) -> None:
        """It has taken some."""
        self._unstall()
        super().resume_writing()

    # ---- Time ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """See what has to come next."""
        if self.is_idle:
            self._wait_for("head")
        else:
            self._wait_for("body" if self.cycle.more_body else "")

    def _wait_for(self, what: str) -> None:
        if what == self._waits_for:
            return
        self._waits_for = what
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if what:
            seconds = HEAD_SECONDS if what == "head" else BODY_SECONDS
            self._timer = self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        log.info("a connection was closed: its request's %s did not come", self._waits_for)
        self.abort()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        self._stalled = None
