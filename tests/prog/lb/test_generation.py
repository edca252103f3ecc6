# SPDX-License-Identifier: Apache-2.0
"""A place in the backend table that is given to another backend: never its predecessor's flows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows
from tests.prog.lb.harness import SMALL, Rig, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import NO_BACKEND, TX

from towpath.model import Backend

pytestmark = pytest.mark.thorough
BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.prog.lb.oracle_parse import Address

TIGHT = replace(SMALL, backends=2, services=2)
MANY = examples(300, 60)
GENERATIONS = (1 << 12) - 1


@pytest.fixture
def tight(net: Network) -> Iterator[Rig]:
    """A load balancer with room for two backends: a third gets the place of another."""
    with rigged(net, limits=TIGHT) as rig:
        yield rig


def handle(rig: Rig, address: Address) -> tuple[int, int]:
    """Index and generation of a backend of the only service."""
    [installed] = rig.balancer._contents.tables.services.values()
    found = installed.handles[address]
    return found & 0xFFFFF, found >> 20


def test_the_next_backend_does_not_get_the_flows(tight: Rig) -> None:
    """Of weight 0 it gets no new flows, so that each packet to it would be one of the old."""
    gone, stays, new = NEAR[4][:3]
    tight.serve(service(VIPS[4], gone, stays))
    before = {each: tight.expect(each, TX).backend for each in flows(MANY)}
    index, generation = handle(tight, gone)
    tight.serve(service(VIPS[4], stays))
    tight.serve(service(VIPS[4], stays, Backend(new, 0)))
    assert handle(tight, new) == (index, generation + 1)
    for each, backend in before.items():
        outcome = tight.expect(each, TX)
        assert outcome.backend == stays
        assert outcome.fresh == (backend == gone)


def test_not_even_if_the_same_backend_comes_back(tight: Rig) -> None:
    """What it was given before it went is forgotten, whatever its address."""
    gone, stays = NEAR[4][:2]
    tight.serve(service(VIPS[4], gone, stays))
    before = {each: tight.expect(each, TX).backend for each in flows(MANY)}
    tight.serve(service(VIPS[4], stays))
    tight.serve(service(VIPS[4], stays, Backend(gone, 0)))
    for each, backend in before.items():
        outcome = tight.expect(each, TX)
        assert (outcome.backend, outcome.fresh) == (stays, backend == gone)


def test_another_service_in_the_place_of_one(tight: Rig) -> None:
    """Flows of a service that is gone are not those of the one with its index."""
    tight.serve(service(VIPS[4], NEAR[4][0]), service(VIPS[6], NEAR[6][0]))
    for each in (*flows(MANY), *flows(MANY, 6)):
        tight.expect(each, TX)
    tight.serve(service(VIPS[4] + 1, Backend(NEAR[4][1], 0)))
    tight.serve(service(VIPS[4], Backend(NEAR[4][2], 0)), service(VIPS[4] + 1, NEAR[4][1]))
    for each in flows(MANY):
        assert tight.expect(each, NO_BACKEND).fresh


def test_counters_and_next_hop_begin_anew(tight: Rig) -> None:
    """Also when the generations have all been used and begin again."""
    for start in (0, GENERATIONS - 1, GENERATIONS):
        tight.serve()
        rows = tight.balancer._program.rows("backends")
        rows["generation"] = start
        for address in (*NEAR[4][:4], *NEAR[6][:4]):
            tight.serve(service(VIPS[4], address))
            [counted] = tight.balancer.counters().services
            assert counted.backend(address).packets == 0
            _, generation = handle(tight, address)
            assert 0 < generation <= GENERATIONS
            for each in flows(3):
                tight.expect(each, TX)


def test_a_load_balancer_that_takes_over_knows_the_generations(net: Network, pins: Path) -> None:
    """They are in the kernel with the flows: what is stale stays stale."""
    gone, stays, new = NEAR[4][:3]
    with rigged(net, limits=TIGHT, pins=pins) as rig:
        rig.serve(service(VIPS[4], gone, stays))
        before = {each: rig.expect(each, TX).backend for each in flows(MANY)}
        remembered, old = rig.world.remembered, handle(rig, gone)
    with rigged(net, limits=TIGHT, pins=pins) as rig:
        assert handle(rig, gone) == old
        rig.serve(service(VIPS[4], stays))
    with rigged(net, limits=TIGHT, pins=pins) as rig:
        rig.world.remembered = remembered
        rig.serve(service(VIPS[4], stays, Backend(new, 0)))
        assert handle(rig, new) == (old[0], old[1] + 1)
        for each, backend in before.items():
            outcome = rig.expect(each, TX)
            assert (outcome.backend, outcome.fresh) == (stays, backend == gone)


def test_a_load_balancer_that_takes_over_knows_the_flows(net: Network, pins: Path) -> None:
    """They keep their backends, though the table would now send them elsewhere."""
    first, second = NEAR[6][:2]
    with rigged(net, pins=pins) as rig:
        rig.serve(service(VIPS[6], first))
        for each in flows(MANY, 6):
            rig.expect(each, TX)
        remembered = rig.world.remembered
    with rigged(net, pins=pins) as rig:
        rig.world.remembered = remembered
        assert not any(rig.expect(each, TX).fresh for each in flows(MANY, 6))
        rig.serve(service(VIPS[6], Backend(first, 0), second))
        assert {rig.expect(each, TX).backend for each in flows(MANY, 6)} == {first}
        assert {rig.expect(each, TX).backend for each in flows(9, 6, start=MANY)} == {second}
