# SPDX-License-Identifier: Apache-2.0
"""Many requests to the API server, each thread's on one connection, and a watch."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.kubernetes.control_plane import ControlPlane

_ERRORS = 300


class Asker:
    """Asks as an administrator. Any thread may."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._tls = ssl.create_default_context(cafile=str(plane.authority))
        self._mine = threading.local()

    def _connection(self) -> http.client.HTTPSConnection:
        made: http.client.HTTPSConnection | None = getattr(self._mine, "connection", None)
        if made is None:
            made = http.client.HTTPSConnection(
                "127.0.0.1", self._plane.port, timeout=60, context=self._tls
            )
            self._mine.connection = made
        return made

    def _send(self, method: str, path: str, body: Any, kind: str) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self._plane.token}", "Content-Type": kind}
        connection = self._connection()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Return what the API server answers. KubernetesError: it refuses. OSError: it's away."""
        try:
            answer = self._send(method, path, body, kind)
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self._forget()
            if method != "GET":
                raise
            answer = self._send(method, path, body, kind)
            text = answer.read()
        if answer.status >= _ERRORS:
            raise KubernetesError(f"{method} {path}: {answer.status}: {text.decode()[:500]}")
        return json.loads(text)

    def _forget(self) -> None:
        """Have the thread's next request begin with a connection of its own."""
        connection, self._mine.connection = self._connection(), None
        connection.close()

    def watch(self, path: str, told: Callable[[Any], None], ended: threading.Event) -> None:
        """Call ``told`` with each event, the first of what there is, until ``ended``."""
        mark = "&" if "?" in path else "?"
        self._connection().timeout = 1.0
        while not ended.is_set():
            with suppress(OSError, http.client.HTTPException):
                answer = self._send("GET", f"{path}{mark}watch=true", None, "application/json")
                self._follow(answer, told, ended)
            self._forget()
            ended.wait(0.1)

    @staticmethod
    def _follow(
        answer: http.client.HTTPResponse, told: Callable[[Any], None], ended: threading.Event
    ) -> None:
        rest = b""
        while not ended.is_set():
            try:
                piece = answer.read1(1 << 20)
            except TimeoutError:
                return
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                told(json.loads(line))
