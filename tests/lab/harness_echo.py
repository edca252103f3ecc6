# SPDX-License-Identifier: Apache-2.0
"""Connections that last as long as a test wants, through a VIP to servers on backends."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, Self

from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import CLIENT, VIP4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab

PORT = 7000
TIMEOUT = 60.0


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    name = ""


class _Handler(StreamRequestHandler):
    """Answers each line with the server's name and that line."""

    server: _Server

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(f"{self.server.name} ".encode() + line)


@contextmanager
def echo_servers(lab: Lab) -> Iterator[None]:
    """A server on each backend, reached through its VIP."""
    with ExitStack() as undo:
        for link in lab.topology.backend_links:
            with in_netns(link.node):
                server = undo.enter_context(_Server(("", PORT), _Handler))
            server.name = link.port
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            undo.callback(thread.join)
            undo.callback(server.shutdown)
        yield


class Conversation:
    """A client's connection to the VIP. ``backend`` is who answers."""

    def __init__(self) -> None:
        with in_netns(CLIENT):
            self._socket = socket.create_connection((str(VIP4), PORT), timeout=TIMEOUT)
        self._lines = self._socket.makefile("rw")
        self.backend = self._ask("hello")

    def goes_on(self) -> bool:
        """Whether the same backend still answers, on the same connection."""
        return self._ask("still there?") == self.backend

    def _ask(self, line: str) -> str:
        self._lines.write(f"{line}\n")
        self._lines.flush()
        backend, _, echo = self._lines.readline().rstrip("\n").partition(" ")
        assert echo == line
        return backend

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()
        self._socket.close()


def who_answers(times: int) -> set[str]:
    """Open so many connections, one after the other; the backends that they get to."""
    found = set()
    for _ in range(times):
        with Conversation() as conversation:
            found.add(conversation.backend)
    return found
