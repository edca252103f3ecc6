# SPDX-License-Identifier: Apache-2.0
"""A change that looks at its own services only ends where one ends that looks at all of them."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.samples import MemoryDatapath, service

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.agent.lb.controller import Controller
from towpath.agent.lb.store import Store
from towpath.agent.sources.intake import Update
from towpath.capabilities import API, ORIGINS
from towpath.datapath.errors import CapacityError
from towpath.model import Backend, BackendState, CheckType, Config, Device, Drain, Health

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from towpath.documents import Plan
    from towpath.model import Service

KUBERNETES = "kubernetes"
CONFIG = Config(devices=(Device("eth0"),), services=(service("file", "203.0.113.99", "192.0.2.1"),))
ADDRESSES = [ip_address(f"192.0.2.{number}") for number in range(1, 6)]
TIMES = 60


class Whole(Controller):
    """Looks at all services for every change."""

    def _carry_out(self, desired: Any, names: Any = None, *more: Any, **options: Any) -> Plan:
        del names
        return super()._carry_out(desired, None, *more, **options)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Controller, Controller]]:
    """One that looks at parts, and one that looks at all; each with its own tables and disk."""
    assert {each.name for each in ORIGINS} >= {API, KUBERNETES}
    with Store(tmp_path / "parts") as one, Store(tmp_path / "whole") as other:
        parts = Controller(CONFIG, one, MemoryDatapath(), (API, KUBERNETES))
        whole = Whole(CONFIG, other, MemoryDatapath(), (API, KUBERNETES))
        parts.start()
        whole.start()
        yield parts, whole


def drawn(chance: random.Random, names: list[str]) -> Service:
    """A service whose name, address and port may be those that another one has."""
    made = service(chance.choice(names), f"203.0.113.{chance.randrange(3)}")
    backends = tuple(
        Backend(each, chance.randrange(1, 3), chance.choice([*BackendState][:2]))
        for each in chance.sample(ADDRESSES, chance.randrange(5))
    )
    health = Health(CheckType.TCP) if chance.random() < 0.3 else None
    return replace(made, port=chance.randrange(80, 83), backends=backends, health=health)


def change(chance: random.Random) -> Callable[[Controller], object]:  # noqa: PLR0911 - one each
    """Any of the ways in which something changes."""
    names = [f"s{number}" for number in range(5)]
    kubernetes = [f"k{number}" for number in range(5)]
    match chance.randrange(9):
        case 0:
            put = [drawn(chance, names) for _ in range(chance.randrange(1, 4))]
            prune, force = chance.random() < 0.2, chance.random() < 0.2
            return lambda each: each.put(put, prune=prune, force=force)
        case 1 | 2 | 3:
            put = [drawn(chance, kubernetes) for _ in range(chance.randrange(3))]
            gone = tuple(chance.sample(kubernetes, chance.randrange(3)))
            update = Update(tuple(put), gone, whole=chance.random() < 0.1)
            return lambda each: each.take(KUBERNETES, update)
        case 4:
            name = chance.choice(names)
            return lambda each: each.delete(name)
        case 5:
            name, address, at_once = chance.choice(names), chance.choice(ADDRESSES), chance.random()
            return lambda each: each.remove_backend(name, address, force=at_once < 0.3)
        case 6:
            flows = {address: chance.randrange(2) for address in ADDRESSES}

            def reap(each: Controller) -> object:
                counted = each.terminating
                return each.reap(counted, {key: flows[key.address] for key in counted})

            return reap
        case 7:
            which = chance.random()

            def set_down(each: Controller) -> object:
                ill = {
                    found.key: frozenset(backend.address for backend in found.backends[:1])
                    for number, found in enumerate(each.desired.checked())
                    if found.backends and (number / 3) % 1 < which
                }
                return each.set_down(ill)

            return set_down
        case _:
            drain = Drain(timeout=chance.choice([0, 60]))
            file = tuple(drawn(chance, [f"f{number}"]) for number in range(chance.randrange(3)))
            return lambda each: each.reload(replace(CONFIG, drain=drain, services=file))


def outcome(which: Controller, make: Callable[[Controller], object]) -> object:
    """What was answered, or why not."""
    try:
        return make(which)
    except (ConflictError, NotFoundError, CapacityError, OSError) as error:
        return type(error), str(error)
    except ValueError as error:  # what is wrong by itself, such as one port twice
        return type(error)


def assert_alike(parts: Controller, whole: Controller) -> None:
    """Tables, disk, and all that is believed."""
    assert by_name(parts) == by_name(whole)
    assert sorted(parts.desired, key=repr) == sorted(whole.desired, key=repr)
    for each in (parts, whole):
        checked = {service for service in each.desired.services() if service.health}
        assert set(each.desired.checked()) == checked
    assert parts.down == whole.down
    assert dict(parts.terminating) == dict(whole.terminating)
    for owner in (API, KUBERNETES):
        assert stored(parts).services(owner) == stored(whole).services(owner)
    for each in (parts, whole):
        assert {known.key: known for known in stored(each).terminating()} == dict(each.terminating)


def stored(of: Controller) -> Store:
    """Its disk."""
    return of._store


def by_name(of: Controller) -> dict[str, Service]:
    """What is in its tables. Who leaves does so in any order."""
    datapath = of._datapath
    assert isinstance(datapath, MemoryDatapath)
    return {
        name: replace(each, backends=tuple(sorted(each.backends, key=lambda one: one.address)))
        for name, each in datapath.held.items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_any_changes_end_alike(
    both: tuple[Controller, Controller], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the API, another source, the file, checks and time; also refused ones, and half done."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    parts, whole = both
    for _ in range(TIMES):
        now += chance.choice([0, 1, 50])
        make = change(chance)
        if chance.random() < 0.1:
            broken = chance.choice([1, 2])
            for each in both:
                each._datapath.broken = broken  # type: ignore[attr-defined]
        answers = [outcome(each, make) for each in both]
        for each in both:
            each._datapath.broken = 0  # type: ignore[attr-defined]
        assert answers[0] == answers[1]
        assert_alike(parts, whole)
    datapath = parts._datapath
    assert isinstance(datapath, MemoryDatapath)
    assert datapath.changed > TIMES / 3


def test_a_part_is_all_that_is_looked_at(both: tuple[Controller, Controller]) -> None:
    """Not even those that others of its kind are asked of."""
    parts, _ = both
    many = tuple(service(f"k{n}", f"203.0.114.{n}", "192.0.2.1") for n in range(90))
    parts.take(KUBERNETES, Update(many, (), whole=False))
    datapath = parts._datapath
    assert isinstance(datapath, MemoryDatapath)
    asked: list[int] = []

    def change(keys: Any, services: Any) -> Any:
        asked.append(len(keys))
        return MemoryDatapath.change(datapath, keys, services)

    datapath.change = change  # type: ignore[method-assign]
    datapath.observed = lambda: pytest.fail("all were asked for")  # type: ignore[method-assign]
    one = replace(many[7], backends=())
    parts.take(KUBERNETES, Update((one,), (), whole=False))
    parts.reap(parts.terminating, {})
    assert asked == [1, 1]


def test_after_a_failure_all_are_looked_at(both: tuple[Controller, Controller]) -> None:
    """What could not be brought back is with the next change, whatever that is about."""
    parts, _ = both
    datapath = parts._datapath
    assert isinstance(datapath, MemoryDatapath)
    parts.put([service("a", "203.0.113.1", "192.0.2.1"), service("b", "203.0.113.2")])
    datapath.broken = 2
    with pytest.raises(OSError, match="out of memory"):
        parts.put([service("a", "203.0.113.1")])
    assert parts.trouble
    parts.put([service("c", "203.0.113.3")])
    assert set(datapath.held) == {"file", "a", "b", "c"}
    assert len(datapath.held["a"].backends) == 1
    assert parts.trouble is None
