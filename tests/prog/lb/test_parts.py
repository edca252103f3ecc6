# SPDX-License-Identifier: Apache-2.0
"""Changes of a part of the services make the very tables that those of all make."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.stale import LiveBackends
from towpath.model import Backend, BackendState, Limits, Protocol, Service
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from towpath.core.lb.plan import Transition
    from towpath.model import ServiceKey

LIMITS = Limits(
    services=12, backends=40, flows=1024, nat_flows=1024, fragments=128, clients=1024, sources=64,
    port_pages=8, table_slots=16384,
)  # fmt: skip
TABLES = ("services", "backends", "vips", "vip_lengths", "port_pages", "local_backends")
BACKENDS = [ip_address(f"192.0.2.{number}") for number in range(1, 9)]


def drawn(chance: random.Random, number: int) -> Service:
    """A service; its name says nothing of what it is for."""
    backends = tuple(
        Backend(each, chance.randrange(3), chance.choice([*BackendState]))
        for each in chance.sample(BACKENDS, chance.randrange(6))
    )
    choices: list[int | Ports] = [80, 80, 443, Ports.of([(1000, 1000 + chance.randrange(400))])]
    ports = chance.choice(choices)
    vip = chance.choice([ip_address(f"203.0.113.{number % 10}"), ip_network("198.51.100.0/24")])
    exact = isinstance(vip, IPv4Address) and not isinstance(ports, Ports)
    return Service(
        f"s{number}",
        vip,
        ports,
        chance.choice([*Protocol]),
        backends,
        table_size=chance.choice([251, 1021]),
        allow_from=chance.choice([None, (ip_network("10.0.0.0/8"),)]),
        scope=chance.choice(["all", "node"]) if exact else "all",
    )


def fits(one: Service, others: dict[str, Service]) -> bool:
    """Whether it is for packets of its own."""
    return not any(one.key.shared(each.key) for each in others.values() if each.name != one.name)


def apply(contents: Contents, services: list[Service]) -> Transition | str:
    """What was done, or why not."""
    try:
        return contents.apply(services)
    except CapacityError as error:
        return str(error)


def change(contents: Contents, keys: set[ServiceKey], services: list[Service]) -> Transition | str:
    """The same of a part."""
    try:
        return contents.change(keys, services)
    except CapacityError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_tables_byte_for_byte(seed: int) -> None:
    """Also where there is no room, and whatever keys are taken over or exchanged."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    refused = 0
    with (
        closing(SharedMaps(LIMITS, None)) as of_all,
        closing(SharedMaps(LIMITS, None)) as of_part,
    ):
        whole, part = Contents(of_all), Contents(of_part)
        live = LiveBackends(part.tables.services)
        wanted: dict[str, Service] = {}
        for _ in range(60):
            after = dict(wanted)
            for number in chance.sample(range(14), chance.randrange(1, 4)):
                made = drawn(chance, number)
                after.pop(made.name, None)
                if chance.random() < 0.8 and fits(made, after):
                    after[made.name] = made
            names = {name for name in wanted | after if wanted.get(name) is not after.get(name)}
            old = [wanted[name] for name in names if name in wanted]
            new = [after[name] for name in names if name in after]
            done = apply(whole, list(after.values()))
            assert change(part, {each.key for each in old}, new) == done
            if isinstance(done, str):
                refused += 1
            else:
                wanted = after
                both = [each for one in done.changes for each in one if each]
                live.change(part.tables.services, {each.key for each in both})
            assert {each.key: each for each in part.observed()} == {
                each.key: each for each in whole.observed()
            }
            for name in TABLES:
                assert of_all.rows(name).tobytes() == of_part.rows(name).tobytes(), name
            slots = [each.slots.read(0, LIMITS.table_slots) for each in (whole.tables, part.tables)]
            assert slots[0].tobytes() == slots[1].tobytes()
            anew = LiveBackends(part.tables.services).now()
            assert live.now() == anew
    assert refused


def test_what_nobody_changed_is_not_looked_at() -> None:
    """Whatever a service would cost that stays as it is."""
    with closing(SharedMaps(LIMITS, None)) as maps:
        contents = Contents(maps)
        one = Service("a", BACKENDS[0], 80, backends=(Backend(BACKENDS[1]),), table_size=251)
        other = replace(one, name="b", vip=BACKENDS[2])
        contents.apply([one, other])
        changed = contents.change({one.key}, [replace(one, backends=())])
        assert [each.service.name for each in changed.plan.changes] == ["a"]
        assert contents.change((), ()).steps == ()
        assert contents.at([other.key, one.key])[0] is other
        assert contents.change({one.key}, []).plan.moved == pytest.approx(1 / 2)
