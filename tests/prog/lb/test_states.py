# SPDX-License-Identifier: Apache-2.0
"""What the state of a backend means to flows that are known and to new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_BACKEND, TX

from towpath.model import Backend, BackendState

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
MANY = examples(300, 60)
ACTIVE, DRAINING, QUARANTINED, DOWN = BackendState
NO_NEW = (DRAINING, QUARANTINED)


@pytest.fixture(autouse=True)
def nothing_known(rig: Rig) -> None:
    """Each test starts with flows that nobody knows."""
    rig.serve()


def with_state(of: Service, address: Address, state: BackendState) -> Service:
    """The service with one of its backends in that state."""
    return replace(
        of,
        backends=tuple(
            replace(each, state=state) if each.address == address else each for each in of.backends
        ),
    )


def owners(rig: Rig, inside: int, start: int = 0) -> dict[bytes, Address | None]:
    """Send a packet of each of MANY flows: who gets them."""
    return {each: rig.expect(each, TX).backend for each in flows(MANY, inside, start=start)}


@pytest.mark.parametrize("state", NO_NEW)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_flows_go_on_and_new_ones_go_elsewhere(
    rig: Rig, inside: int, outside: int, state: BackendState
) -> None:
    """Draining and quarantined alike; back again, it has no other flows than before."""
    drained = NEAR[outside][0]
    web = service(VIPS[inside], *NEAR[outside][:4])
    rig.serve(web)
    before = owners(rig, inside)
    rig.serve(with_state(web, drained, state))
    assert owners(rig, inside) == before
    assert drained in before.values()
    assert drained not in owners(rig, inside, MANY).values()
    rig.serve(web)
    assert owners(rig, inside) == before
    assert drained in owners(rig, inside, 2 * MANY).values()


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_down_moves_its_flows_and_no_other(rig: Rig, inside: int, outside: int) -> None:
    """At once, for good: when it is back they stay where they have gone."""
    fallen = NEAR[outside][0]
    web = service(VIPS[inside], *NEAR[outside][:4])
    rig.serve(web)
    before = owners(rig, inside)
    rig.serve(with_state(web, fallen, DOWN))
    after = owners(rig, inside)
    assert fallen not in after.values()
    assert all(after[each] == owner for each, owner in before.items() if owner != fallen)
    rig.serve(web)
    assert owners(rig, inside) == after


@pytest.mark.parametrize("state", NO_NEW)
def test_drained_and_then_down(rig: Rig, state: BackendState) -> None:
    """What it still had goes; that it is back and drains again brings nothing back."""
    fallen = NEAR[4][0]
    web = service(VIPS[4], *NEAR[4][:3])
    rig.serve(web)
    before = owners(rig, 4)
    rig.serve(with_state(web, fallen, state))
    assert owners(rig, 4) == before
    for then in (DOWN, state):
        rig.serve(with_state(web, fallen, then))
        assert fallen not in owners(rig, 4).values()


@pytest.mark.parametrize("state", [*NO_NEW, DOWN])
def test_nobody_active_takes_nothing_new(rig: Rig, state: BackendState) -> None:
    """Packets of no known flow are dropped and counted."""
    web = service(VIPS[4], *(Backend(each, 1, state) for each in NEAR[4][:2]))
    rig.serve(web)
    for each in flows(10, 4):
        rig.expect(each, NO_BACKEND)


@pytest.mark.parametrize("remembers", [True, False])
def test_flap_of_one_moves_flows_of_no_other(rig: Rig, remembers: bool) -> None:  # noqa: FBT001
    """Flows that the table alone leads, too: what isn't the flapping one's does not move."""
    web = service(VIPS[4], *NEAR[4], flow_table=remembers)
    rig.serve(web)
    before = owners(rig, 4)
    fallen = NEAR[4][2]
    rig.serve(with_state(web, fallen, DOWN))
    after = owners(rig, 4)
    assert [each for each in before if before[each] != after[each]] == [
        each for each in before if before[each] == fallen
    ]
    rig.serve(web)
    assert owners(rig, 4) == (after if remembers else before)
