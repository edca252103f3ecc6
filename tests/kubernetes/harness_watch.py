# SPDX-License-Identifier: Apache-2.0
"""One kind that is followed in this process, against the real API server."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_source import service

from towpath.agent.sources.kubernetes.client import Api
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping

    from tools.kubernetes.control_plane import ControlPlane

    from towpath.agent.sources.kubernetes.access import Place
    from towpath.core.kubernetes.problems import Refusal

SERVICES = Resource(objects.Service, "/api/v1/services", "services")
SECONDS = 120


@dataclass
class Told:
    """What a reflector has told."""

    names: set[str] = field(default_factory=set)
    replaced: int = 0
    unread: list[Refusal] = field(default_factory=list)

    async def is_same_cluster(self) -> None:
        """It is."""

    def put(self, found: Any) -> None:
        """One more."""
        self.names.add(found.metadata.name)

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """One less."""
        del kind, namespace
        self.names.discard(name)

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """All."""
        del kind
        self.names = {each.metadata.name for each in found} | {name for _, name in unread}
        self.replaced += 1

    def cannot_read(self, refusal: Refusal) -> None:
        """One that can't be decoded."""
        self.unread.append(refusal)


class _Counted(Api):
    """Counts streams that are asked for."""

    asked = 0

    def lines(self, path: str, parameters: Mapping[str, str]) -> AsyncGenerator[list[bytes]]:
        """One more."""
        self.asked += 1
        return super().lines(path, parameters)


class Running:
    """A reflector in a thread of its own."""

    def __init__(
        self, place: Place, resource: Resource = SERVICES, *, streams: bool = True
    ) -> None:
        self.told = Told()
        self._streams = streams
        self.place = place
        self._resource = resource
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(SECONDS)

    async def _run(self) -> None:
        async with _Counted(self.place) as api:
            self.api = api
            self.reflector = Reflector(api, self._resource, self.told)
            if not self._streams:
                # From the server's cache (version 0) a list comes whole, whatever its limit.
                self.reflector._streams, self.reflector._floor = False, ""
            self._loop = asyncio.get_running_loop()
            self._end = asyncio.Event()
            self._task = asyncio.ensure_future(self.reflector.run())
            self._ready.set()
            await self._end.wait()
        await asyncio.sleep(0.3)  # TLS says goodbye

    async def _stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _go_on(self) -> None:
        self._task = asyncio.ensure_future(self.reflector.run())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def has_asked(self, times: int) -> bool:
        """Whether so many streams were asked for."""
        return self.api.asked >= times

    def pause(self) -> None:
        """End the watch, as a server does that ends it cleanly."""
        self._do(self._stop())

    def resume(self) -> None:
        """Go on as after a clean end, whatever has happened meanwhile."""
        self._do(self._go_on())

    def close(self) -> None:
        """End it."""
        self.pause()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def until(self, done: Callable[[], bool]) -> None:
        """Wait until something is true."""
        limit = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < limit, (self.told, self.reflector.error)
            time.sleep(0.02)


@contextmanager
def running(place: Place, resource: Resource = SERVICES) -> Iterator[Running]:
    """A reflector that is synced."""
    made = Running(place, resource)
    try:
        made.until(lambda: made.reflector.synced)
        yield made
    finally:
        made.close()


def make(control_plane: ControlPlane, name: str) -> None:
    """Make a Service."""
    path = "/api/v1/namespaces/default/services"
    assert control_plane.request("POST", path, service(name))[0] == 201


def delete(control_plane: ControlPlane, name: str) -> None:
    """Delete it."""
    path = f"/api/v1/namespaces/default/services/{name}"
    assert control_plane.request("DELETE", path)[0] == 200
