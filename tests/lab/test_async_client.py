# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client, against a real agent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_agent import DEVICE, MAIL, Agent, running
from tests.lab.harness_record import send

import towpath
from towpath import AsyncClient, BackendState
from towpath.errors import UnreachableError
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOW = "198.51.100.7:40000 -> 203.0.113.10:80 tcp"
ANYTHING = bytes(60)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One for all tests here."""
    with running(tmp_path_factory.mktemp("agent")) as started:
        yield started


def test_changes_and_readings(agent: Agent) -> None:
    """By the same names, with the same answers."""

    async def told() -> None:
        async with AsyncClient(agent.socket) as client:
            assert [each.name for each in await client.services()] == ["web"]
            assert [str(each.owner) for each in await client.entries()] == ["file"]
            plan = await client.apply([parse_service(MAIL)])
            assert [change.action for change in plan.changes] == ["add"]
            backends = await client.backends("mail")
            async with client.drained("mail", backends[0].address):
                states = [each.state for each in await client.backends("mail")]
                assert states == [BackendState.DRAINING, BackendState.ACTIVE]
            assert await client.backends("mail") == backends
            dns = parse_service(MAIL | {"name": "dns", "port": 53})
            async with client.temporary(dns):
                assert await client.service("dns") == dns
            assert {each.name for each in await client.services()} == {"web", "mail"}
            assert (await client.counters()).service("web").drops == 0
            assert (await client.trace(FLOW)).device == DEVICE
            assert [flow async for flow in client.flows(service="mail")] == []
            assert (await client.count_flows(service="mail")).total == 0
            assert (await client.status()).pid
            assert "towpath" in await client.metrics()
            await client.health()
            await client.remove_service("mail")

    asyncio.run(told())


def test_errors_are_those_of_the_client(agent: Agent, tmp_path: Path) -> None:
    """And the connection goes on after them."""

    async def refused() -> None:
        async with AsyncClient(agent.socket) as client:
            with pytest.raises(towpath.NotFoundError, match="there is no service 'dns'"):
                await client.service("dns")
            with pytest.raises(towpath.ConfigError):
                await client.set_backend("web", "nonsense")
            with pytest.raises(towpath.ConflictError, match="belongs to the configuration file"):
                await client.remove_service("web")
            assert await client.service("web")
        async with AsyncClient(tmp_path / "none") as client:
            with pytest.raises(UnreachableError, match="no agent answers"):
                await client.services()

    asyncio.run(refused())


def test_tasks_share_a_client(agent: Agent) -> None:
    """One that is cancelled in the middle of an answer takes it from nobody else."""

    async def shared() -> None:
        async with AsyncClient(agent.socket) as client:
            asked = [asyncio.create_task(client.services()) for _ in range(20)]
            asked[3].cancel()
            await asyncio.sleep(0.002)
            asked[0].cancel()
            found = await asyncio.gather(*asked, return_exceptions=True)
            names = {each[0].name for each in found if isinstance(each, tuple)}
            assert names == {"web"}
            assert isinstance(found[3], asyncio.CancelledError)
            assert [each.name for each in await client.services()] == ["web"]

    asyncio.run(shared())


def test_a_capture(agent: Agent, tmp_path: Path) -> None:
    """Its pieces come while the client asks other things."""

    async def captured() -> int:
        async with (
            AsyncClient(agent.socket) as client,
            await client.record({"packets": 2}) as stream,
        ):
            assert (await client.capture(stream.number)).ended == ""
            send(ANYTHING, ANYTHING)
            return await stream.save(tmp_path / "capture.pcapng")

    assert asyncio.run(captured()) == (tmp_path / "capture.pcapng").stat().st_size > 100

    async def stopped() -> bytes:
        async with (
            AsyncClient(agent.socket) as client,
            await client.record(towpath.Capture()) as stream,
        ):
            await stream.stop()
            return b"".join([piece async for piece in stream])

    assert asyncio.run(stopped())[:4] == b"\n\r\r\n"


def test_an_agent_that_restarts(agent: Agent) -> None:
    """Is asked again on a new connection."""

    async def across() -> None:
        async with AsyncClient(agent.socket) as client:
            before = (await client.status()).pid
            await asyncio.to_thread(agent.end)
            with pytest.raises(UnreachableError):
                await client.status()
            await asyncio.to_thread(agent.start)
            assert (await client.status()).pid != before

    asyncio.run(across())
