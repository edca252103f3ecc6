# SPDX-License-Identifier: Apache-2.0
"""What an API server tells from its memory is compared with what its database has."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.sources.kubernetes.harness_api import (
    NODES,
    SERVICES,
    SLICES,
    ApiServer,
    Known,
    refusal,
    serving,
    until,
)

from towpath.agent.sources.kubernetes import truth, watch
from towpath.agent.sources.kubernetes.access import Place
from towpath.agent.sources.kubernetes.client import Api
from towpath.agent.sources.kubernetes.truth import Truth
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


RESOURCES = (
    Resource(objects.Service, SERVICES, "services"),
    Resource(objects.EndpointSlice, SLICES, "endpointslices"),
    Resource(objects.Node, NODES, "nodes"),
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes less."""
    monkeypatch.setattr(truth, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(truth, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "FIRST_SECONDS", 0.01)


class Followed:
    """An API server whose objects are followed, and who compares them."""

    def __init__(self, server: ApiServer, api: Api) -> None:
        self.server, self.api = server, api
        self.known = Known()
        self.reflectors = [Reflector(api, each, self.known) for each in RESOURCES]
        self.reflectors[2].history.pinned["", "n1"] = None
        self.truth = Truth(self.reflectors, self.list_anew)

    def list_anew(self) -> None:
        """All."""
        for each in self.reflectors:
            each.list_anew()

    async def look(self) -> str | None:
        """Compare, and return what isn't true."""
        await self.truth.look(self.api)
        return self.truth.trouble

    async def until_listed(self) -> None:
        """Wait until all kinds were listed since the last look that found something."""
        before = self.truth._lists
        await until(
            lambda: all(
                each.lists > lists for each, lists in zip(self.reflectors, before, strict=True)
            ),
            "lists",
        )


@asynccontextmanager
async def followed() -> AsyncIterator[Followed]:
    """With a Service, a slice and two Nodes."""
    async with serving(ApiServer()) as server, Api(Place(server.url)) as api:
        for kind, name in ((NODES, "n1"), (NODES, "n2")):
            server.put(kind, {"metadata": {"name": name}})
        server.put(SERVICES, service("first"))
        server.put(SLICES, service("first-a"))
        made = Followed(server, api)
        tasks = [asyncio.ensure_future(each.run()) for each in made.reflectors]
        await until(lambda: all(each.synced for each in made.reflectors), "states")
        try:
            yield made
        finally:
            for each in tasks:
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each


def service(name: str, **more: Any) -> dict[str, Any]:
    """A Service, or what stands for a slice."""
    return {"metadata": {"name": name, "namespace": "default"}, **more}


async def changed(made: Followed, kind: str, name: str) -> None:
    """Have an object told."""
    found = made.server.put(kind, service(name))
    version = found["metadata"]["resourceVersion"]
    of = next(each for each in made.reflectors if each.resource.path == kind)
    await until(lambda: of.version == version, "it to be told")


def test_what_agrees() -> None:
    """Nothing is said, whatever the last changes were, and few objects are asked for."""

    async def run() -> None:
        async with followed() as made:
            assert await made.look() is None
            await changed(made, SERVICES, "second")
            made.server.delete(SERVICES, "first")
            await until(lambda: made.known.services == {"second"}, "it to be gone")
            made.server.asked.clear()
            assert await made.look() is None
            assert sorted(path for path, _ in made.server.asked) == [
                "/api/v1/namespaces/default/services/first",
                f"{NODES}/n1",
                f"{NODES}/n2",
                "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/first-a",
            ]
            assert [each.lists for each in made.reflectors] == [1, 1, 1]

    asyncio.run(run())


async def lose_new(made: Followed) -> None:
    """The last Service was made after the snapshot."""
    await changed(made, SERVICES, "second")
    del made.server.database[SERVICES, "default", "second"]


async def lose_change(made: Followed) -> None:
    """It was changed after it."""
    before = made.server.database[SERVICES, "default", "first"]
    await changed(made, SERVICES, "first")
    made.server.database[SERVICES, "default", "first"] = before


async def lose_deletion(made: Followed) -> None:
    """It was deleted after it."""
    before = made.server.database[SERVICES, "default", "first"]
    made.server.delete(SERVICES, "first")
    await until(lambda: not made.known.services, "it to be gone")
    made.server.database[SERVICES, "default", "first"] = before


async def write_unheard(made: Followed) -> None:
    """Nothing was lost, and what is written is in the database only."""
    made.server.forgetful = True
    made.server.put(NODES, {"metadata": {"name": "n1"}})


async def delete_unheard(made: Followed) -> None:
    """So is what is deleted."""
    made.server.forgetful = True
    made.server.delete(NODES, "n2", "")


async def another(made: Followed) -> None:
    """And what is made anew under its name."""
    made.server.forgetful = True
    made.server.delete(SERVICES, "first")
    made.server.put(SERVICES, service("first"))


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (lose_new, "Service default/second is of version 15, and the database has none"),
        (lose_change, "Service default/first is of version 15, and the database has version 13"),
        (lose_deletion, "Service default/first is gone at version 15, and the database has"),
        (write_unheard, "Node n1 is of version 11, and the database has version 15"),
        (delete_unheard, "Node n2 is of version 12, and the database has none"),
        (another, "Service default/first is of version 13, and the database has version 16"),
    ],
)
def test_a_memory_that_is_not_true(part: Callable[[Followed], Any], why: str) -> None:
    """It is told until a list has what the database has, however often the old one is listed."""

    async def run() -> None:
        async with followed() as made:
            await part(made)
            assert why in str(await made.look())
            known = {kind: set(names) for kind, names in made.known.names.items()}
            # All is listed anew at once: the same server tells the same.
            await made.until_listed()
            assert why in str(await made.look())
            assert made.known.names == known
            lists = [each.lists for each in made.reflectors]
            assert why in str(await made.look())
            assert [each.lists for each in made.reflectors] == lists
            made.server.restart()
            made.list_anew()
            await until(lambda: made.reflectors[0].lists > lists[0], "a list")
            await until(lambda: made.reflectors[2].lists > lists[2], "a list")
            assert await made.look() is None
            there = {name for kind, _, name in made.server.database if kind == SERVICES}
            assert made.known.services == there
            assert await made.look() is None
            assert set(made.reflectors[0].history.pinned) == set()
            assert set(made.reflectors[2].history.pinned) == {("", "n1")}

    asyncio.run(run())


def test_it_is_listed_anew_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then: another server may answer by now."""
    monkeypatch.setattr(truth, "ANEW_SECONDS", 0.0)

    async def run() -> None:
        async with followed() as made:
            await lose_new(made)
            assert await made.look()
            for _ in range(2):
                await made.until_listed()
                assert await made.look()
            del made.server.memory[SERVICES, "default", "second"]
            await made.until_listed()
            await made.look()
            await made.until_listed()
            assert await made.look() is None

    asyncio.run(run())


def test_what_is_written_again_is_no_proof() -> None:
    """That the one object which gave it away is right by now says nothing of others."""

    async def run() -> None:
        async with followed() as made:
            await changed(made, SERVICES, "lost")
            await lose_new(made)
            del made.server.database[SERVICES, "default", "lost"]
            assert "default/second" in str(await made.look())
            await made.until_listed()
            await changed(made, SERVICES, "second")
            assert await made.look() is not None

    asyncio.run(run())


def test_a_watch_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database has and a watch tells then is as it should be."""
    monkeypatch.setattr(truth, "SETTLE_SECONDS", 60.0)

    async def run() -> None:
        async with followed() as made:
            made.server.forgetful = True
            found = made.server.put(SERVICES, service("first"))
            look = asyncio.ensure_future(made.look())
            await until(lambda: any("services/first" in path for path, _ in made.server.asked), "")
            await asyncio.sleep(0.05)
            made.server.forgetful = False
            made.server._notice(SERVICES, "MODIFIED", found)
            assert await look is None
            assert [each.lists for each in made.reflectors] == [1, 1, 1]

    asyncio.run(run())


@pytest.mark.parametrize("code", [403, 500])
def test_a_database_that_cannot_be_asked(code: int) -> None:
    """Nothing is concluded."""

    async def run() -> None:
        async with followed() as made:
            await lose_new(made)
            made.server.answer = lambda request: (
                refusal(code, "no") if request.path.endswith("second") else None
            )
            assert await made.look() is None

    asyncio.run(run())


def test_a_watch_that_is_not_there() -> None:
    """Whoever tells nothing tells nothing untrue."""

    async def run() -> None:
        async with followed() as made:
            await lose_new(made)
            made.server.answer = lambda _: refusal(500, "away")
            made.server.end_watches()
            await until(lambda: all(each.error for each in made.reflectors), "errors")
            made.server.answer = lambda _: None
            assert await made.look() is None

    asyncio.run(run())


def test_it_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some time, or at once if there is a reason."""

    async def run() -> None:
        async with followed() as made:
            await lose_new(made)
            task = asyncio.ensure_future(made.truth.run(made.api))
            await asyncio.sleep(0.05)
            assert made.truth.trouble is None
            made.truth.hurry()
            await until(lambda: made.truth.trouble, "it to be found")
            task.cancel()
            monkeypatch.setattr(truth, "LOOK_SECONDS", 0.05)
            made.truth = Truth(made.reflectors, made.list_anew)
            task = asyncio.ensure_future(made.truth.run(made.api))
            await until(lambda: made.truth.trouble, "it to be found")
            task.cancel()

    asyncio.run(run())
