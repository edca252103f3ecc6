# SPDX-License-Identifier: Apache-2.0
"""What a source hands in while a Service changes again and again."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.core.kubernetes.harness_cluster import addresses, endpoint, read

from towpath.agent.parts import Shared
from towpath.agent.sources.intake import Intake, Surroundings, Update
from towpath.agent.sources.kubernetes.source import Source
from towpath.core.kubernetes import pace
from towpath.datapath.neigh.wanted import Wanted
from towpath.model import parse_config
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 0.3
"""That a Service rests: so long that what a test does takes less."""


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services with an endpoint rest for longer than they do."""
    monkeypatch.setattr(pace, "EACH_SECONDS", SECONDS)
    monkeypatch.setattr(pace, "MOST_SECONDS", SECONDS)


class Following:
    """A source that is told by a test, and what it has handed in."""

    def __init__(self, directory: Path) -> None:
        self.updates: list[dict[str, int]] = []
        """Of each change, the number of backends of each Service."""
        self._changed = asyncio.Event()
        given = {"kubeconfig": "/nowhere", "node": "n1"}
        text = json.dumps({"kubernetes": given, "state": {"directory": str(directory)}})
        config = parse_config(text, "towpath.yaml")
        unused: Any = None
        around = Surroundings(config, tuple, unused, Shared(), Wanted(), lambda *_: "no")
        intake: Intake[Update] = Intake("kubernetes", self._take, lambda: (), around)
        self.source = Source(config.sections["kubernetes"], intake)
        self.source._events = self.source._ports = None
        self.source.reflectors = (SimpleNamespace(synced=True),)  # type: ignore[assignment]

    async def _take(self, update: Update) -> None:
        self.updates.append({each.name.split(":")[1]: len(each.backends) for each in update.put})
        self._changed.set()

    def service(self, name: str, number: int) -> None:
        """A Service."""
        meta = {"name": name, "namespace": "default", "uid": name}
        ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
        spec = {"clusterIP": f"10.96.0.{number}", "ports": ports}
        self.source.put(read(objects.Service, {"metadata": meta, "spec": spec}))

    def slice(self, name: str, number: int) -> None:
        """Its slice, with so many endpoints."""
        labels = {"kubernetes.io/service-name": name}
        raw = {
            "metadata": {"name": f"{name}-a", "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [endpoint(each) for each in addresses(0, number)],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }
        self.source.put(read(objects.EndpointSlice, raw))

    async def until(self, number: int) -> None:
        """Wait for so many changes."""
        async with asyncio.timeout(30):
            while len(self.updates) < number:
                self._changed.clear()
                await self._changed.wait()

    @asynccontextmanager
    async def handing_in(self) -> AsyncIterator[None]:
        """What it hands in, in the block."""
        task = asyncio.ensure_future(self.source._publish())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def test_changes_of_one_service_are_handed_in_together(tmp_path: Path) -> None:
    """All of them, the last included, though nothing comes after it; others don't wait."""

    async def run() -> None:
        following = Following(tmp_path)
        following.service("web", 10)
        following.service("other", 11)
        async with following.handing_in():
            await following.until(1)
            following.slice("web", 9)
            await following.until(2)
            assert following.updates[1:] == [{"web": 9}], "at once: it has not had an endpoint"
            for number in range(8, 3, -1):
                following.slice("web", number)
                await asyncio.sleep(0)
            following.slice("other", 2)
            await following.until(3)
            assert following.updates[2:] == [{"other": 2}]
            assert following.source.lateness.behind > 0
            await following.until(4)
            assert following.updates[3:] == [{"web": 4}]
        assert following.source.lateness.behind == 0

    asyncio.run(run())


def test_a_list_is_handed_in_whole(tmp_path: Path) -> None:
    """What it lacks is compared with what is in force, and nothing of it rests."""

    async def run() -> None:
        following = Following(tmp_path)
        following.service("web", 10)
        async with following.handing_in():
            await following.until(1)
            following.slice("web", 9)
            await following.until(2)
            following.slice("web", 8)
            found = [following.source.cluster._services["default", "web"]]
            following.source.replace(objects.Service, found, set())
            assert following.source._takes_all
            await following.until(3)
            assert following.updates[2:] == [{"web": 8}]

    asyncio.run(run())
