# SPDX-License-Identifier: Apache-2.0
"""An API server on the loopback device that does what a test says.

It keeps objects twice: as its database has them, and as its memory has them, from which it answers
lists and watches. They are the same unless a test parts them.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from towpath.core.kubernetes.problems import Refusal

    Answer = web.StreamResponse | None

END = {"k8s.io/initial-events-end": "true"}
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"
KUBE_SYSTEM = "/api/v1/namespaces/kube-system"

Key = tuple[str, str, str]
"""Where its kind is, namespace and name."""


class ApiServer:
    """One that runs in the block of `serving`."""

    def __init__(self) -> None:
        self.version = 10
        self.cluster = "cluster-1"
        """The UID of kube-system."""
        self.database: dict[Key, dict[str, Any]] = {}
        self.memory: dict[Key, dict[str, Any]] = {}
        self.forgetful = False
        """What is written isn't noticed by its memory."""
        self.silent: set[str] = set()
        """Kinds whose lists aren't answered."""
        self.answer: Callable[[web.Request], Answer] = lambda _: None
        """Says something else than would be right."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str] = []
        """By which it was asked."""
        self.posted: list[dict[str, Any]] = []
        self.url = ""
        self._log: list[tuple[int, str, dict[str, Any]]] = []
        """Versions, kinds and events."""
        self._begins = 0
        """The version from which it has them."""
        self._watches: set[tuple[str, asyncio.Queue[dict[str, Any] | None]]] = set()

    # ---- What a test does ------------------------------------------------------------------------

    def put(self, kind: str, found: dict[str, Any]) -> dict[str, Any]:
        """Make or change an object."""
        self.version += 1
        meta = {"namespace": "", "uid": f"uid-{self.version}"} | found["metadata"]
        key = (kind, meta["namespace"], meta["name"])
        before = self.database.get(key)
        if before is not None:
            meta["uid"] = before["metadata"]["uid"]
        made = found | {"metadata": meta | {"resourceVersion": str(self.version)}}
        self.database[key] = made
        self._notice(kind, "ADDED" if before is None else "MODIFIED", made)
        return made

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Take one out."""
        self.version += 1
        found = self.database.pop((kind, namespace, name))
        meta = found["metadata"] | {"resourceVersion": str(self.version)}
        self._notice(kind, "DELETED", found | {"metadata": meta})

    def _notice(self, kind: str, what: str, found: dict[str, Any]) -> None:
        if self.forgetful:
            return
        meta = found["metadata"]
        key = (kind, meta["namespace"], meta["name"])
        if what == "DELETED":
            del self.memory[key]
        else:
            self.memory[key] = found
        event = {"type": what, "object": found}
        self._log.append((self.version, kind, event))
        self._tell(kind, event)

    def _tell(self, kind: str, event: dict[str, Any] | None) -> None:
        for its, queue in self._watches:
            if its == kind or not kind:
                queue.put_nowait(event)

    def end_watches(self, kind: str = "") -> None:
        """All of a kind, or all there are: cleanly."""
        self._tell(kind, None)

    def bookmark(self) -> None:
        """Tell all watches the version."""
        for kind in {its for its, _ in self._watches}:
            self._tell(kind, _bookmark(self.version))

    def restart(self) -> None:
        """Let its memory be what its database has."""
        self.memory, self._log, self.forgetful = dict(self.database), [], False
        self._begins = self.version
        self.end_watches()

    def watches(self, kind: str) -> int:
        """How many there are of a kind."""
        return sum(its == kind for its, _ in self._watches)

    def lists(self, kind: str) -> int:
        """How often a kind was listed."""
        return sum(path == kind and "sendInitialEvents" in of for path, of in self.asked)

    # ---- What it answers -------------------------------------------------------------------------

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.path, query))
        self.tokens.append(request.headers.get("Authorization", ""))
        if (other := self.answer(request)) is not None:
            return other
        if request.path == KUBE_SYSTEM:
            return web.json_response({"metadata": {"name": "kube-system", "uid": self.cluster}})
        if request.method == "POST":
            self.posted.append(await request.json())
            return web.json_response({"metadata": {"name": "made"}}, status=201)
        if "watch" in query:
            return await self._watch(request, query)
        return self._get(request.path, query)

    def _get(self, path: str, query: dict[str, str]) -> web.StreamResponse:
        if path in {SERVICES, SLICES, NODES}:
            return self._list(path, query)
        kind, _, name = path.rpartition("/")
        namespace = ""
        if "/namespaces/" in kind:
            group, _, rest = kind.partition("/namespaces/")
            namespace, _, plural = rest.partition("/")
            kind = f"{group}/{plural}"
        found = self.database.get((kind, namespace, name))
        if found is None:
            return refusal(404, "NotFound")
        return web.json_response(found)

    def _list(self, path: str, query: dict[str, str]) -> web.StreamResponse:
        """In pages: a token is the number of the first object of the next one."""
        there = [found for (kind, *_), found in sorted(self.memory.items()) if kind == path]
        first = int(query.get("continue", "0"))
        last = first + int(query.get("limit", "1000"))
        meta = {"resourceVersion": str(self.version)}
        if last < len(there):
            meta["continue"] = str(last)
        return web.json_response({"metadata": meta, "items": there[first:last]})

    async def _watch(self, request: web.Request, query: dict[str, str]) -> web.StreamResponse:
        kind = request.path
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        for first in self._beginning(kind, query):
            queue.put_nowait(first)
        self._watches.add((kind, queue))
        try:
            with suppress(ConnectionError):
                while (event := await queue.get()) is not None:
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.discard((kind, queue))
        return response

    def _beginning(self, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
        if "sendInitialEvents" not in query:
            since = int(query["resourceVersion"])
            if since < self._begins:
                return [{"type": "ERROR", "object": {"kind": "Status", "code": 410}}]
            return [event for version, its, event in self._log if its == kind and version > since]
        if kind in self.silent:
            return []
        there = [found for (its, *_), found in self.memory.items() if its == kind]
        added = [{"type": "ADDED", "object": each} for each in there]
        return [*added, _bookmark(self.version, END)]


def _bookmark(version: int, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    meta = {"resourceVersion": str(version), "annotations": annotations}
    return {"type": "BOOKMARK", "object": {"metadata": meta}}


def refusal(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    """As the API server refuses."""
    body = {"kind": "Status", "code": code, "reason": reason, "message": reason}
    return web.json_response(body, status=code, headers=headers)


@asynccontextmanager
async def serving(server: ApiServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
    """It runs in the block."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server._respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield server
    finally:
        server.end_watches()
        await runner.cleanup()


async def until(done: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 - of what is waited for nobody tells
            await asyncio.sleep(0.005)
    assert done(), what


class Known:
    """What a reflector has told, by kind."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.replaced: list[list[str]] = []
        """The names of each state that was taken over."""

    @property
    def services(self) -> set[str]:
        """The names of Services."""
        return self.names.get("Service", set())

    async def is_same_cluster(self) -> None:
        """It is."""

    def put(self, found: Any) -> None:
        """One more."""
        self.names[type(found).__name__].add(found.metadata.name)

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """One less."""
        del namespace
        self.names[kind.__name__].discard(name)

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """All."""
        del unread
        self.names[kind.__name__] = {each.metadata.name for each in found}
        self.replaced.append(sorted(self.names[kind.__name__]))

    def cannot_read(self, refusal: Refusal) -> None:
        """None is like that."""
        raise AssertionError(refusal)
