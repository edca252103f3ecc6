# SPDX-License-Identifier: Apache-2.0
"""No two agents lead at once, whatever their clocks and the API server do."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towpath.agent.sources.kubernetes.client import Api, ApiError
from towpath.agent.sources.kubernetes.lease import LEASE_SECONDS, RENEW_SECONDS, Election
from towpath.model.sources.kubernetes.objects import ApiStatus

PATH = "kube-system/towpath-pools"


class Store:
    """A Lease as the API server keeps it: who writes has to know its version."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        self.loses_answers = False

    async def get(self, path: str, *, seconds: float) -> bytes:
        """What there is."""
        self._check(path, seconds)
        if self.lease is None:
            raise ApiError("not found", ApiStatus(code=404))
        return json.dumps(self.lease).encode()

    async def post(self, path: str, body: dict[str, Any], seconds: float) -> bytes:
        """Make it, unless it is there."""
        self._check(path, seconds)
        return self._keep(body, is_right=self.lease is None)

    async def put(self, path: str, body: dict[str, Any], seconds: float) -> bytes:
        """Another in its place, if this was made of what is there."""
        self._check(path, seconds)
        assert self.lease is not None
        version = self.lease["metadata"]["resourceVersion"]
        return self._keep(body, is_right=body["metadata"]["resourceVersion"] == version)

    def _check(self, path: str, seconds: float) -> None:
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases")
        assert seconds < LEASE_SECONDS - RENEW_SECONDS
        if self.away:
            raise ApiError("no answer in time")

    def _keep(self, body: dict[str, Any], *, is_right: bool) -> bytes:
        if not is_right:
            raise ApiError("conflict", ApiStatus(code=409))
        self.version += 1
        body = json.loads(json.dumps(body))
        body["metadata"]["resourceVersion"] = str(self.version)
        self.lease = body
        if self.loses_answers:
            raise ApiError("no answer in time")
        return json.dumps(body).encode()


class World:
    """Agents whose clocks begin anywhere, and run as they like."""

    def __init__(self, *rates: float) -> None:
        self.now = 0.0
        self.store = Store()
        self.told = 0
        self.agents = [self._agent(number, rate) for number, rate in enumerate(rates)]

    def _agent(self, number: int, rate: float) -> Election:
        def clock() -> float:
            return 1e6 * number + rate * self.now

        def tell() -> None:
            self.told += 1

        return Election(PATH, f"n{number}", tell, clock)

    def attempt(self, *numbers: int) -> None:
        """Have these try, one after the other."""
        for number in numbers:
            # Nothing is waited for, so no loop is needed: thousands of them would take a minute.
            with suppress(StopIteration):
                self.agents[number].attempt(cast("Api", self.store)).send(None)

    def leaders(self) -> list[int]:
        """Who leads."""
        return [number for number, each in enumerate(self.agents) if each.leads]


def test_the_first_leads() -> None:
    """And goes on to, as long as it renews; all know who it is."""
    world = World(1.0, 1.0)
    for _ in range(30):
        world.attempt(0, 1)
        world.now += 2
        assert world.leaders() == [0]
    assert [each.leader for each in world.agents] == ["n0", "n0"]
    assert [each.term for each in world.agents] == [1, 0]
    assert world.store.lease is not None
    assert world.store.lease["spec"]["leaseTransitions"] == 0


def test_another_leads_when_it_is_dead() -> None:
    """After the time that the Lease says, since it was last seen to be renewed."""
    world = World(1.0, 1.0)
    world.attempt(0, 1)
    world.now = RENEW_SECONDS
    assert world.leaders() == []
    world.attempt(1)
    world.now = LEASE_SECONDS + 0.1
    world.attempt(1)
    assert world.leaders() == [1]
    # The one that was thought dead sees it.
    world.attempt(0)
    assert world.leaders() == [1]
    assert world.agents[0].leader == "n1"
    assert world.store.lease is not None
    assert world.store.lease["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_lease_that_is_an_older_one(number: int) -> None:
    """Whoever has seen a later one says so: its database was put back."""
    world, told = World(1.0, 1.0), []
    world.agents[number].went_back = lambda: told.append(number)
    for _ in range(3):
        world.attempt(0, 1)
        world.now += 2
    before, version = copy.deepcopy(world.store.lease), world.store.version
    for _ in range(3):
        world.attempt(0, 1)
        world.now += 2
    assert not told
    world.store.lease, world.store.version = before, version
    world.attempt(0, 1)
    assert told == [number]


def test_one_that_comes_late_waits_as_long() -> None:
    """What the Lease says of its time is another's clock."""
    world = World(1.0, 1.0)
    world.attempt(0)
    world.now = 1000
    world.attempt(1)
    assert world.leaders() == []
    world.now += LEASE_SECONDS
    world.attempt(1)
    assert world.leaders() == []
    world.now += 0.1
    world.attempt(1)
    assert world.leaders() == [1]


def test_the_api_server_is_away() -> None:
    """The leader stops by itself; it begins a new term when it leads again."""
    world = World(1.0)
    world.attempt(0)
    world.store.away = True
    while world.now < RENEW_SECONDS:
        world.attempt(0)
        assert world.leaders() == [0]
        world.now += 2
    world.attempt(0)
    assert world.leaders() == []
    assert "no answer in time" in str(world.agents[0].trouble)
    world.store.away = False
    world.attempt(0)
    assert (world.leaders(), world.agents[0].term, world.agents[0].trouble) == ([0], 2, None)


def test_somebody_else_writes_the_lease() -> None:
    """A label leaves us leading; another holder doesn't."""
    world = World(1.0)
    world.attempt(0)
    assert world.store.lease is not None
    world.store.lease["metadata"]["resourceVersion"] = "77"
    world.attempt(0)
    assert (world.leaders(), world.agents[0].term) == ([0], 1)
    world.store.lease["metadata"]["resourceVersion"] = "78"
    world.store.lease["spec"]["holderIdentity"] = "somebody"
    world.attempt(0)
    assert world.leaders() == []
    assert world.agents[0].leader == "somebody"


def test_one_that_ends_lets_another_lead_at_once() -> None:
    """The Lease is free then."""

    async def run() -> None:
        task = asyncio.create_task(world.agents[0].run(cast("Api", world.store)))
        await asyncio.sleep(0)
        assert world.agents[0].leads
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    world = World(1.0, 1.0)
    asyncio.run(run())
    assert world.leaders() == []
    world.attempt(1)
    assert world.leaders() == [1]


@settings(max_examples=15)
@given(st.integers(0, 1 << 32))
def test_never_two(seed: int) -> None:
    """Clocks that run up to 1.45 times as fast, answers that are lost, servers that are away."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    world = World(*(chance.uniform(1.0, 1.45) for _ in range(3)))
    led = 0
    for _ in range(150):
        world.store.away = chance.random() < 0.2
        world.store.loses_answers = chance.random() < 0.2
        if chance.random() < 0.7:
            world.attempt(chance.randrange(3))
        for _ in range(4):
            world.now += chance.uniform(0.0, 1.0)
            assert len(world.leaders()) <= 1
            led += len(world.leaders())
    assert led
