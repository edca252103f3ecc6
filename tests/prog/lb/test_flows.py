# SPDX-License-Identifier: Apache-2.0
"""Flows keep their backend while tables change; whatever is forgotten, Maglev answers."""

from __future__ import annotations

import pytest
from tests.guests import examples
from tests.prog.lb.frames import PORT, VIPS, flows, frame, made_for
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_BACKEND, NO_VIP, TX

from towpath.model import Backend, Protocol

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
MANY = examples(300, 60)
BATCH = examples(100, 30)


@pytest.fixture(autouse=True)
def nothing_known(rig: Rig) -> None:
    """Each test starts with flows that nobody knows."""
    rig.serve()


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_flow_is_new_once(rig: Rig, inside: int, outside: int, protocol: Protocol) -> None:
    """From its second packet on it is known."""
    rig.serve(service(VIPS[inside], *NEAR[outside], protocol=protocol))
    for expected in (True, False, False):
        made = [rig.expect(each, TX) for each in flows(MANY, inside, protocol.number)]
        assert [outcome.fresh for outcome in made] == [expected] * MANY


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_known_flows_stay_while_tables_change(rig: Rig, inside: int, outside: int) -> None:
    """Backends come, weights change, the table gets another size: only new flows notice."""
    first, *more = NEAR[outside]
    wishes = (
        (first, more[0]),
        (first, more[0], more[1]),
        (Backend(first, 1), Backend(more[0], 9), more[1]),
        (Backend(first, 0), Backend(more[0], 0), Backend(more[1], 0), more[2], more[3]),
    )
    for number, backends in enumerate(wishes):
        rig.serve(service(VIPS[inside], *backends, table_size=251 if number % 2 else 1021))
        known = [rig.expect(each, TX) for each in flows(number * BATCH, inside)]
        assert not any(outcome.fresh for outcome in known)
        fresh = [rig.expect(each, TX) for each in flows(BATCH, inside, start=number * BATCH)]
        assert all(outcome.fresh for outcome in fresh)
    # Of these weights are 0 by now: not one flow is where Maglev would send it.
    assert {outcome.backend for outcome in known} == {first, more[0], more[1]}


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_weight_zero_keeps_the_flows_it_has(rig: Rig, inside: int, outside: int) -> None:
    """Drained: nothing new, nothing moved; then the other way round."""
    drained, other = NEAR[outside][:2]
    rig.serve(service(VIPS[inside], drained, other))
    before = {each: rig.expect(each, TX).backend for each in flows(MANY, inside)}
    rig.serve(service(VIPS[inside], Backend(drained, 0), other))
    assert {each: rig.expect(each, TX).backend for each in before} == before
    new = [rig.expect(each, TX).backend for each in flows(MANY, inside, start=MANY)]
    assert set(new) == {other}
    rig.serve(service(VIPS[inside], Backend(drained, 0), Backend(other, 0)))
    assert {each: rig.expect(each, TX).backend for each in before} == before
    rig.expect(frame(inside, sport=1), NO_BACKEND)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_removal_moves_the_flows_of_one_backend(rig: Rig, inside: int, outside: int) -> None:
    """All of its own to where Maglev says, and no other's."""
    gone, *others = NEAR[outside]
    rig.serve(service(VIPS[inside], gone, *others))
    before = {each: rig.expect(each, TX).backend for each in flows(MANY, inside)}
    rig.serve(service(VIPS[inside], *others))
    for each, backend in before.items():
        outcome = rig.expect(each, TX)
        assert outcome.fresh == (backend == gone)
        assert backend in {outcome.backend, gone}
    # Having come back, it isn't given its old flows again: they have found a new home.
    rig.serve(service(VIPS[inside], gone, *others))
    assert not any(rig.expect(each, TX).backend == gone for each in before)


def test_services_do_not_share_flows(rig: Rig) -> None:
    """One client address and port, towards many services: a flow of each."""
    services = [
        service(VIPS[family] + n, backend, port=port, protocol=protocol)
        for family in (4, 6)
        for protocol in Protocol
        for n, port, backend in (
            (0, PORT, NEAR[family][0]),
            (0, PORT + 1, NEAR[family][1]),
            (1, PORT, NEAR[family][2]),
        )
    ]
    rig.serve(*services)
    for expected in (True, False):
        for each in services:
            outcome = rig.expect(made_for(each), TX)
            assert outcome.backend == each.backends[0].address
            assert outcome.fresh == expected


def test_a_flow_is_all_five_of_its_parts(rig: Rig) -> None:
    """Source address and port tell flows apart, in any of their bits."""
    rig.serve(*(service(VIPS[family], *NEAR[family]) for family in (4, 6)))
    for family, fields in ((4, range(26, 30)), (6, range(22, 38))):
        ports = range(34, 36) if family == 4 else range(54, 56)
        rig.check(frame(family))
        for at in (*fields, *ports):
            for bit in range(8):
                made = bytearray(frame(family))
                made[at] ^= 1 << bit
                assert rig.expect(bytes(made), TX).fresh
                assert not rig.expect(bytes(made), TX).fresh


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_without_a_flow_table_every_packet_goes_by_maglev(
    rig: Rig, inside: int, outside: int
) -> None:
    """Also where flows had been remembered before, which are remembered again after."""
    first, *others = NEAR[outside]
    key = (VIPS[inside], PORT, 6)
    rig.serve(service(VIPS[inside], first))
    remembered = list(flows(MANY, inside))
    for each in remembered:
        rig.expect(each, TX)
    rig.serve(service(VIPS[inside], first, *others, flow_table=False))
    for each in remembered * 2:
        outcome = rig.expect(each, TX)
        assert outcome.fresh
        assert outcome.flow is not None
        assert outcome.backend == rig.world.by_maglev(key, outcome.flow)
    rig.serve(service(VIPS[inside], first, *others))
    for each in remembered:
        outcome = rig.expect(each, TX)
        assert (outcome.fresh, outcome.backend) == (False, first)


def test_a_service_that_is_made_again_knows_no_flows(rig: Rig) -> None:
    """Its packets pass in between, and it begins anew."""
    again = service(VIPS[4], *NEAR[4])
    rig.serve(again)
    for each in flows(MANY):
        rig.expect(each, TX)
    rig.serve()
    for each in flows(MANY):
        rig.expect(each, NO_VIP)
    rig.serve(again)
    assert all(rig.expect(each, TX).fresh for each in flows(MANY))
