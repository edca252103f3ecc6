# SPDX-License-Identifier: Apache-2.0
"""What pods of tests run: servers that say who they are, and a client that says what it got.

    pod.py serve PORT...       TCP and UDP on each, in both families; /ready on port 8099
    pod.py ask tcp|udp ADDRESS PORT COUNT [SECONDS]

A server answers each line (UDP: each datagram) with NAME CLIENT-ADDRESS PORT, and HTTP with a page
that says so. NAME is the environment's, else the host's. It ignores SIGTERM for the seconds that
LINGER says.
Standard library only: it is also run by whatever Python there is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTROL = 8099
_NAME = os.environ.get("NAME") or socket.gethostname()
_LINGER = float(os.environ.get("LINGER", "0"))
_ready = threading.Event()


def said(client: str, port: int) -> bytes:
    """What a server answers."""
    return f"{_NAME} {client.removeprefix('::ffff:')} {port}\n".encode()


class _Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while line := self.rfile.readline():
            answer = said(self.client_address[0], self.connection.getsockname()[1])
            if line.startswith(b"GET "):
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + answer)
                return
            self.wfile.write(answer)


class _Streams(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class _Control(BaseHTTPRequestHandler):
    """``/ready`` is the readiness probe; POST ``/ready`` and ``/unready`` decide it."""

    def do_GET(self) -> None:
        self._answer(200 if _ready.is_set() else 503)

    def do_POST(self) -> None:
        _ready.set() if self.path == "/ready" else _ready.clear()
        self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


class _Controls(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _datagrams(port: int) -> None:
    """Answer from the address that was asked, of which a host may have several."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        server.bind(("::", port))
        while True:
            _, more, _, client = server.recvmsg(2048, 128)
            # The interface index is left to the route of the answer.
            answered = [(level, kind, data[:16] + bytes(4)) for level, kind, data in more]
            server.sendmsg([said(client[0], port)], answered, 0, client)


def serve(ports: list[int]) -> None:
    """Serve until SIGTERM, and as long after it as LINGER says."""
    for port in ports:
        streams = _Streams(("::", port), _Stream)
        threading.Thread(target=streams.serve_forever, daemon=True).start()
        threading.Thread(target=_datagrams, args=(port,), daemon=True).start()
    control = _Controls(("::", int(os.environ.get("CONTROL", CONTROL))), _Control)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    _ready.set()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    time.sleep(_LINGER)


def ask(kind: str, address: str, port: int, seconds: float) -> dict[str, Any]:
    """Ask once, over a connection (a socket) of its own."""
    began = time.monotonic()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    of = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind]
    try:
        with socket.socket(family, of) as client:
            client.settimeout(seconds)
            client.connect((address, port))
            client.send(b"?\n")
            name, source, there = client.recv(2048).decode().split()
            got: dict[str, Any] = {"name": name, "source": source, "port": int(there)}
            got["own"] = client.getsockname()[0]
    except (OSError, ValueError) as error:
        got = {"error": type(error).__name__}
    return got | {"ms": round((time.monotonic() - began) * 1000, 2)}


def main() -> None:
    """As the command line says."""
    verb, *words = sys.argv[1:]
    if verb == "serve":
        serve([int(each) for each in words])
        return
    kind, address, port, count, *seconds = words
    limit = float(seconds[0]) if seconds else 3.0
    print(json.dumps([ask(kind, address, int(port), limit) for _ in range(int(count))]))


if __name__ == "__main__":
    main()
